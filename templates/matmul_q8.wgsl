$# Y = X Wᵀ for many tokens with x in 8-bit integers, a tile a workgroup, by tiles_q8.wgsl.
{$ from "tiles.wgsl" import column, results, threads, N with context $}
{$ from "tiles_q8.wgsl" import memory, products with context $}
{{ memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first_col = group.x * {{ tile_cols }}u;
    let first_row = group.y * {{ tile_rows }}u;
{{ products("first_row + line" if total % tile_rows == 0 else "min(first_row + line, %du)" % (total - 1),
            "first_col + " + column() if N % tile_cols == 0 else "min(first_col + %s, %du)" % (column(), N - 1)) }}
{{ results("first_row + line", "%du - first_row" % total, "first_col") }}
}
