$# Round rows to 8-bit integers in blocks of 32, after an RMS norm if there is one. An invocation has quads of a row, eight of them a block.
{$ from "reduction.wgsl" import scratch, reduce with context $}
{{ scratch(1, lanes, lanes, subgroup) if norm }}
$$ if not shuffles
var<workgroup> most_of: array<f32, {{ lanes }}>;
var<workgroup> sum_of: array<i32, {{ lanes }}>;
$$ endif

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = group.y;
$$ for i in range(each)
    let at{{ i }} = {{ "index + %du" % (i * lanes) if norm else "group.x * %du + index" % lanes }};
    let live{{ i }} = at{{ i }} < {{ quads }}u;
    let spot{{ i }} = row * {{ quads }}u + min(at{{ i }}, {{ quads - 1 }}u);
    var v{{ i }} = select(vec4<f32>(), {{ x.load4("spot%d" % i) }}, live{{ i }});
$$ endfor
$$ if norm
    var square = 0.0;
$$ for i in range(each)
    square += dot(v{{ i }}, v{{ i }});
$$ endfor
{{ reduce("sum", ["square"], lanes, lanes, subgroup) }}
    let scale = inverseSqrt(square / {{ quads * 4 }}.0 + {{ norm.eps }});
$$ for i in range(each)
    v{{ i }} *= scale{{ " * " + norm.weight.load4("min(at%d, %du)" % (i, quads - 1)) if norm.weight }};
$$ endfor
$$ endif
$$ for i in range(each)
    {
        let magnitude = abs(v{{ i }});
        var most = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
$$ if shuffles
        most = max(most, subgroupShuffleXor(most, 1u));
        most = max(most, subgroupShuffleXor(most, 2u));
        most = max(most, subgroupShuffleXor(most, 4u));
$$ else
        most_of[index] = most;
        workgroupBarrier();
$$ for k in range(8)
        most = max(most, most_of[(index & ~7u) + {{ k }}u]);
$$ endfor
$$ endif
        let integers = vec4<i32>(round(v{{ i }} * select(0.0, 127.0 / most, most > 0.0)));
        var sum = integers.x + integers.y + integers.z + integers.w;
$$ if shuffles
        sum += subgroupShuffleXor(sum, 1u);
        sum += subgroupShuffleXor(sum, 2u);
        let other = subgroupShuffleXor(sum, 4u);
$$ else
        sum_of[index] = sum;
        workgroupBarrier();
        let start = index & ~7u;
        sum = sum_of[start] + sum_of[start + 1u] + sum_of[start + 2u] + sum_of[start + 3u];
        let other = sum_of[start + 4u] + sum_of[start + 5u] + sum_of[start + 6u] + sum_of[start + 7u];
        workgroupBarrier();
$$ endif
        if (live{{ i }}) {
            {{ outs[0].store("spot%d" % i, "pack4xI8(integers)") }};
            if ((index & 7u) == 0u) {
                let unit = most / 127.0;
                {{ outs[1].store4("spot%d / 8u" % i, "vec4<f32>(unit, unit * f32(sum), unit * f32(other), 0.0)") }};
            }
        }
    }
$$ endfor
}
