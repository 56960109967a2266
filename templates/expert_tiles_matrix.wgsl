$# As expert_tiles, by products of small matrices, by tiles_matrix.wgsl.
{$ from "tiles_matrix.wgsl" import memory, place, products, results with context $}
{$ from "grouping.wgsl" import grouping_memory, find_tile, find_members, member_row, matrix_row with context $}
{{ memory() }}
{{ grouping_memory() }}
@compute @workgroup_size({{ threads }})
fn main({{ place() }}) {
{{ find_tile() }}
    if (tile.z > 0u) {
{{ find_members() }}
{{ products(member_row(x.shape | length), matrix_row("line")) }}
{{ results("members[line]", "tile.z", "first_col", score.load("row") if score is defined else "") }}
    }
}
