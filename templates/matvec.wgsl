$# y = W x for a few tokens, by rows.wgsl.
{$ from "rows.wgsl" import memory, place, ahead, products, results, threads, units with context $}
{{ memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
{{ place() }}
    let token = group.z * {{ tokens }}u;
{{ ahead("token", total) }}
$$ for t in range(tokens)
    let x{{ t }} = {{ "(token + %du)" % t if total % tokens == 0 else "min(token + %du, %du)" % (t, total - 1) }} * {{ units }}u;
$$ endfor
{{ products() }}
{{ results("token", total) }}
}
