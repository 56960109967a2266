$# Y = X Wᵀ for many tokens by products of small matrices, a tile a workgroup, by tiles_matrix.wgsl.
{$ from "tiles_matrix.wgsl" import memory, place, products, results, threads, N with context $}
{{ memory() }}
@compute @workgroup_size({{ threads }})
fn main({{ place() }}) {
    let first_row = group.x * {{ tile_rows }}u;
    let first_col = group.y * {{ tile_cols }}u;
{{ products("first_row + line" if total % tile_rows == 0 else "min(first_row + line, %du)" % (total - 1),
            "first_col + line" if N % tile_cols == 0 else "min(first_col + line, %du)" % (N - 1)) }}
{{ results("first_row + line", "%du - first_row" % total, "first_col") }}
}
