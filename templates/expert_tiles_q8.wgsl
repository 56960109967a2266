$# As expert_tiles, with x in 8-bit integers, by tiles_q8.wgsl.
{$ from "tiles.wgsl" import column, results, threads with context $}
{$ from "tiles_q8.wgsl" import memory, products with context $}
{$ from "grouping.wgsl" import grouping_memory, find_tile, find_members, member_row, matrix_row with context $}
{{ memory() }}
{{ grouping_memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
{{ find_tile() }}
    if (tile.z > 0u) {
{{ find_members() }}
{{ products(member_row(x.shape | length), matrix_row(column())) }}
{{ results("members[line]", "tile.z", "first_col", score.load("row") if score is defined else "") }}
    }
}
