$# Tiles of rows that share an expert. The tokens and choices (slots) of one expert fill tiles of their own: workgroup y makes the y-th of
$# all experts' tiles, and the last workgroups find nothing to do. Every workgroup counts for itself: no order is kept anywhere.
$$ set experts, N = w.shape[0], w.shape[1]
$$ set chunk = (slots + threads - 1) // threads

$# Their sizes are those that tiles_matrix.wgsl asks for.
$$ macro grouping_memory()
var<workgroup> counts: array<atomic<u32>, {{ (experts + 3) // 4 * 4 }}>;
var<workgroup> before: array<u32, {{ threads }}>;
var<workgroup> members: array<u32, {{ tile_rows }}>;
var<workgroup> found: vec4<u32>;        // the tile's expert, how many of its slots come before the tile, and how many are in it

fn chosen(slot: u32) -> u32 { return min(u32({{ expert.load("slot") }}), {{ experts - 1 }}u); }
$$ endmacro

$# Find the workgroup's tile, (expert, slots before, slots in it): none if tile.z is 0.
$$ macro find_tile()
$# workgroup memory should start as zeros, but does not on every adapter
    for (var e = index; e < {{ experts }}u; e += {{ threads }}u) { atomicStore(&counts[e], 0u); }
    if (index == 0u) { found = vec4<u32>(); }
    workgroupBarrier();
    for (var slot = index; slot < {{ slots }}u; slot += {{ threads }}u) { atomicAdd(&counts[chosen(slot)], 1u); }
    workgroupBarrier();
    for (var e = index; e < {{ experts }}u; e += {{ threads }}u) {
        var tiles = 0u;
        for (var other = 0u; other < e; other++) { tiles += (atomicLoad(&counts[other]) + {{ tile_rows - 1 }}u) / {{ tile_rows }}u; }
        let count = atomicLoad(&counts[e]);
        let skip = (group.y - tiles) * {{ tile_rows }}u;
        if (group.y >= tiles && skip < count) { found = vec4<u32>(e, skip, min(count - skip, {{ tile_rows }}u), 0u); }
    }
    let tile = workgroupUniformLoad(&found);
$$ endmacro

$# Fill `members` with the slots of the tile: a slot's place in its expert's tiles is the number of the expert's slots before it.
$$ macro find_members()
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
$$ endmacro

$# The row of x, of so many dimensions, that line `line` of the tile takes; a line beyond the last takes the last's.
$$ macro member_row(dimensions)
{{ "members[min(line, tile.z - 1u)]" }}{{ " / %du" % choices if dimensions == 2 }}
$$- endmacro

$# The row of w that line `line` takes, given its column of the tile.
$$ macro matrix_row(column)
matrix + {{ "first_col + " + column if N % tile_cols == 0 else "min(first_col + %s, %du)" % (column, N - 1) }}
$$- endmacro
