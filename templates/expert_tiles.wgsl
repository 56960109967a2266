$# Y = X W[expert]ᵀ for many tokens, by tiles.wgsl. The tokens and choices of one expert fill tiles of their own: workgroup y makes the
$# y-th of all experts' tiles, and the last workgroups find nothing to do. Every workgroup counts for itself: no order is kept anywhere.
{$ from "tiles.wgsl" import memory, products, column, results, threads, N with context $}
$$ set experts = w.shape[0]
$$ set chunk = (slots + threads - 1) // threads
{{ memory() }}
var<workgroup> counts: array<atomic<u32>, {{ experts }}>;
var<workgroup> before: array<u32, {{ threads }}>;
var<workgroup> members: array<u32, {{ tile_rows }}>;
var<workgroup> found: vec3<u32>;        // the tile's expert, how many of its slots come before the tile, and how many are in it

fn chosen(slot: u32) -> u32 { return min(u32({{ expert.load("slot") }}), {{ experts - 1 }}u); }

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
$# workgroup memory should start as zeros, but does not on every adapter
    for (var e = index; e < {{ experts }}u; e += {{ threads }}u) { atomicStore(&counts[e], 0u); }
    if (index == 0u) { found = vec3<u32>(); }
    workgroupBarrier();
    for (var slot = index; slot < {{ slots }}u; slot += {{ threads }}u) { atomicAdd(&counts[chosen(slot)], 1u); }
    workgroupBarrier();
    for (var e = index; e < {{ experts }}u; e += {{ threads }}u) {
        var tiles = 0u;
        for (var other = 0u; other < e; other++) { tiles += (atomicLoad(&counts[other]) + {{ tile_rows - 1 }}u) / {{ tile_rows }}u; }
        let count = atomicLoad(&counts[e]);
        let skip = (group.y - tiles) * {{ tile_rows }}u;
        if (group.y >= tiles && skip < count) { found = vec3<u32>(e, skip, min(count - skip, {{ tile_rows }}u)); }
    }
    let tile = workgroupUniformLoad(&found);
    if (tile.z > 0u) {
        // a slot's place in its expert's tiles is the number of the expert's slots before it
        let start = index * {{ chunk }}u;
        let end = min(start + {{ chunk }}u, {{ slots }}u);
        var own = 0u;
        for (var slot = start; slot < end; slot++) { own += u32(chosen(slot) == tile.x); }
        before[index] = own;
        workgroupBarrier();
        var place = 0u;
        for (var other = 0u; other < index; other++) { place += before[other]; }
        for (var slot = start; slot < end; slot++) {
            if (chosen(slot) == tile.x) {
                if (place >= tile.y && place - tile.y < tile.z) { members[place - tile.y] = slot; }
                place++;
            }
        }
        workgroupBarrier();
        let first_col = group.x * {{ tile_cols }}u;
        let matrix = tile.x * {{ N }}u;
$$ set member = "members[min(line, tile.z - 1u)]"
{{ products(member if x.shape | length == 3 else "%s / %du" % (member, choices),
            "matrix + first_col + " + column() if N % tile_cols == 0 else "matrix + min(first_col + %s, %du)" % (column(), N - 1)) }}
{{ results("members[line]", "tile.z", "first_col", score.load("row") if score is defined else "") }}
    }
}
