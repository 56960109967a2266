$# y = W x for a few tokens with x in 8-bit integers, by rows_q8.wgsl.
{$ from "rows.wgsl" import memory, place, ahead, results, results_memory, threads, K with context $}
{$ from "rows_q8.wgsl" import products with context $}
{{ memory() }}
{{ results_memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
{{ place() }}
    let token = group.z * {{ tokens }}u;
{{ ahead("token", total) }}
$$ for t in range(tokens)
    let x{{ t }} = {{ "(token + %du)" % t if total % tokens == 0 else "min(token + %du, %du)" % (t, total - 1) }} * {{ K // 32 }}u;
$$ endfor
{{ products() }}
{{ results("token", total) }}
}
