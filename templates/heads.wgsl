$# What happens to head vectors between projection and attention. Workgroup x is a head of one of the streams, y a block of rows.
$# An invocation holds pairs of elements, those that rotate together, from the load to the last store.
{$ from "reduction.wgsl" import scratch, reduce with context $}
$$ set threads = lanes * groups
$$ if normed
{{ scratch(1, lanes, threads, subgroup) }}
$$ endif
$$ if rounded
var<workgroup> finished: array<f32, {{ groups * rounded }}>;
$$ endif
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % {{ lanes }}u;
    let mine = group.y * {{ groups }}u + index / {{ lanes }}u;
    let row = min(mine, {{ rows - 1 }}u);
$$ for stream in streams
$$ set D = stream.dim
$$ set pairs = D // 2
$$ set per = (pairs + lanes - 1) // lanes
$$ set guard = "mine < %du" % rows if rows % groups else "true"
    {{ "else " if not loop.first }}{{ "if (group.x < %du) " % (stream.first + stream.heads) if not loop.last }}{
        let head = group.x - {{ stream.first }}u;
        let vector = row * {{ stream.heads }}u + head;
$$ for j in range(per)
        let pair{{ j }} = {{ "min(lane + %du, %du)" % (j * lanes, pairs - 1) if pairs % lanes else "lane + %du" % (j * lanes) }};
        let own{{ j }} = {{ guard }}{{ " && lane + %du < %du" % (j * lanes, pairs) if pairs % lanes }};
$$ if stream.interleaved
        let a{{ j }} = 2u * pair{{ j }};
        let b{{ j }} = a{{ j }} + 1u;
$$ else
$$ set half = stream.rotary
        let a{{ j }} = {{ "pair%d" % j if half == pairs else "select(2u * pair%d, pair%d, pair%d < %du)" % (j, j, j, half) }};
        let b{{ j }} = {{ "a%d + %du" % (j, half) if half == pairs else "a%d + select(1u, %du, pair%d < %du)" % (j, half, j, half) }};
$$ endif
$$ set source = "row * %du + %du + head * %du + " % (stream.stride, stream.offset, D)
        var v{{ j }} = vec2<f32>({{ at(stream.source).load(source ~ "a%d" % j) }}, {{ at(stream.source).load(source ~ "b%d" % j) }});
$$ endfor
$$ for step in stream.steps
        {
$$ if step.kind == "store"
$$ for j in range(per)
            if (own{{ j }}) {
                {{ at(step.out).store("vector * %du + a%d" % (D, j), "v%d.x" % j) }};
                {{ at(step.out).store("vector * %du + b%d" % (D, j), "v%d.y" % j) }};
            }
$$ endfor
$$ elif step.kind == "cache_write"
            let p = {{ at(step.position).load("row") }};
            let line = ((min(u32({{ at(step.slot).load("row") }}), {{ at(step.out).shape[0] - 1 }}u) * {{ stream.heads }}u + head) * {{ at(step.out).shape[2] }}u + u32(p) % {{ at(step.out).shape[2] }}u) * {{ D }}u;
$$ if at(step.out).layout.store
$$ set group = at(step.out).layout.group
            let start = index / {{ lanes }}u * {{ D }}u;
$$ for j in range(per)
            if (own{{ j }}) {
                finished[start + a{{ j }}] = v{{ j }}.x;
                finished[start + b{{ j }}] = v{{ j }}.y;
            }
$$ endfor
            workgroupBarrier();
            let stop = select(0u, {{ D }}u, {{ "%s && " % guard if rows % groups }}p >= 0);
            for (var i = 4u * lane; i < stop; i += {{ 4 * lanes }}u) {
                let four = vec4<f32>(finished[start + i], finished[start + i + 1u], finished[start + i + 2u], finished[start + i + 3u]);
                var most = 0.0;
                for (var k = 0u; k < {{ group }}u; k++) { most = max(most, abs(finished[start + i / {{ group }}u * {{ group }}u + k])); }
                {{ at(step.out).store_rounded("(line + i) / 4u", "four", "most") }};
            }
            workgroupBarrier();
$$ else
$$ for j in range(per)
            if (own{{ j }} && p >= 0) {
                {{ at(step.out).store("line + a%d" % j, "v%d.x" % j) }};
                {{ at(step.out).store("line + b%d" % j, "v%d.y" % j) }};
            }
$$ endfor
$$ endif
$$ elif step.kind == "rope"
            let turn = min(u32(max({{ at(step.position).load("row") }}, 0)), {{ at(step.table).shape[0] - 1 }}u) * {{ 2 * stream.rotary }}u;
$$ for j in range(per)
            {{ "if (pair%d < %du) " % (j, stream.rotary) if stream.rotary < pairs }}{
                let cos = {{ at(step.table).load("turn + 2u * pair%d" % j) }};
                let sin = {{ at(step.table).load("turn + 2u * pair%d + 1u" % j) }};
                v{{ j }} = vec2<f32>(v{{ j }}.x * cos - v{{ j }}.y * sin, v{{ j }}.x * sin + v{{ j }}.y * cos);
            }
$$ endfor
$$ elif step.kind == "rms_norm"
            var square = 0.0;
$$ for j in range(per)
            square += {{ "select(0.0, dot(v%d, v%d), lane + %du < %du)" % (j, j, j * lanes, pairs) if pairs % lanes else "dot(v%d, v%d)" % (j, j) }};
$$ endfor
{{ reduce("sum", ["square"], lanes, threads, subgroup) }}
            let scale = inverseSqrt(square / {{ D }}.0 + {{ step.eps }});
$$ for j in range(per)
            v{{ j }} *= scale{{ " * vec2<f32>(%s, %s)" % (at(step.weight).load("a%d" % j), at(step.weight).load("b%d" % j)) if step.weight }};
$$ endfor
$$ elif step.kind == "position_scale"
            let factor = {{ at(step.table).load("min(u32(max(%s, 0)), %du)" % (at(step.position).load("row"), at(step.table).shape[0] - 1)) }};
$$ for j in range(per)
            v{{ j }} *= factor;
$$ endfor
$$ else
$$ for j in range(per)
            v{{ j }} = vec2<f32>({{ step.element(at, "v%d.x" % j, "vector", "a%d" % j) }}, {{ step.element(at, "v%d.y" % j, "vector", "b%d" % j) }});
$$ endfor
$$ endif
        }
$$ endfor
    }
$$ endfor
}
