$# Y = X Wᵀ for some tokens with x in 8-bit integers: every invocation keeps one block of 32 columns of `tokens` rows of x in registers
$# while rows of W pass, `rows` at a time. `lanes` invocations (a subgroup, where there are any) have neighbouring blocks; `parts` such bands
$# share the columns, and `teams` of those the rows of a workgroup. Their sums meet in workgroup memory at the end.
{$ from "reduction.wgsl" import spread with context $}
{$ from "rounding.wgsl" import rounding_memory, round_quad with context $}
{$ from "whole.wgsl" import number $}
$$ set K, N = w.shape[-1], w.shape[-2]
$$ set blocks, each = K // 32, 2 if pairs else 1
$$ set height, pitch = rows * steps * teams, tokens + 1
$$ set width, span, shelf = height // each, lanes * parts, height * pitch
$$ set threads, items = span * teams, width * tokens
$$ set together = [lanes, rows * tokens] | min
$$ set before = "select(kept[home], 0.0, start == 0u) + " if span < blocks else ""
$$ set guarded = blocks % span != 0
$# What of a fetched block is used: it is kept while the next rows are on their way.
$$ set used = [w.scaling("w")]
$$ for j in range(8)
$$ do used.append(w.word("w", j))
$$ endfor
$$ set held = carried(w.fetch("0u", "w"), used | join(" "))

$# What one row of W gives with one token's block.
$$ macro product(r, t)
$$ set first, second = [], []
$$ for j in range(4)
$$ do first.append("dot4I8Packed(c%d_%d, low%d.%s)" % (r, j, t, "xyzw"[j]))
$$ do second.append("dot4I8Packed(c%d_%d, high%d.%s)" % (r, j + 4, t, "xyzw"[j]))
$$ endfor
$$ if w.layout.halves
x{{ t }}.x * (unit{{ r }}.x * {{ number(first) }} + unit{{ r }}.y * {{ number(second) }}) + unit{{ r }}.z * x{{ t }}.y + unit{{ r }}.w * x{{ t }}.z
$$- else
x{{ t }}.x * unit{{ r }}.x * {{ number(first + second) }}{{ " + unit%d.z * x%d.y" % (r, t) if w.layout.shifted }}
$$- endif
$$ endmacro

$# Result `mine` of the workgroup from its parts.
$$ macro result()
        let place = mine / {{ width }}u + mine % {{ width }}u * {{ each * pitch }}u;
$$ for e in range(each)
        var result{{ e }} = kept[place{{ " + %du" % (e * pitch) if e }}];
$$ for p in range(1, parts)
        result{{ e }} += kept[place + {{ p * shelf + e * pitch }}u];
$$ endfor
$$ endfor
$$ if attr.eps is defined
        var square = squares[mine / {{ width }}u];
$$ for p in range(1, parts)
        square += squares[mine / {{ width }}u + {{ p * tokens }}u];
$$ endfor
        square = inverseSqrt(square / {{ K }}.0 + {{ literal(attr.eps) }});
$$ for e in range(each)
        result{{ e }} *= square;
$$ endfor
$$ endif
        if ({{ "index < %du && " % items if items < threads }}col < {{ N // each }}u && at < {{ total }}u)
            {{ finish(["result0", "result1"] if pairs else "result0", "at", "col", "rounded[mine]") }}
$$ endmacro

$# Where result `mine` goes, and what its epilogue reads there.
$$ macro ahead()
    let at = group.x * {{ tokens }}u + mine / {{ width }}u;
    let col = group.y * {{ width }}u + mine % {{ width }}u;
    {{ finish.ahead("min(at, %du)" % (total - 1), "col" if N % height == 0 else "min(col, %du)" % (N // each - 1)) }}
$$ endmacro

$# Ask memory for the rows of W from `line` of the workgroup's on.
$$ macro ask(line, name)
$$ for r in range(rows)
$$ set row = "group.y * %du + %s + %du" % (height, line, r)
            let {{ name }}row{{ r }} = {{ finish.line(row if N % height == 0 else "min(%s, %du)" % (row, N - 1), r % 2) }};
            {{ w.fetch("%srow%d * %du + block" % (name, r, blocks), "%s%d" % (name, r)) }}
$$ endfor
$$ endmacro

$# Without subgroups: let the band see everyone's values, and add up one of them.
$$ macro write(names)
$$ for name in names
            scratch[{{ loop.index0 * threads }}u + index] = {{ name }};
$$ endfor
            workgroupBarrier();
$$ endmacro

$$ macro add(value)
                    var total = 0.0;
                    for (var k = 0u; k < {{ lanes }}u; k++) {
                        total += scratch[{{ value }} * {{ threads }}u + index / {{ lanes }}u * {{ lanes }}u + (k + lane) % {{ lanes }}u];
                    }
$$ endmacro

$$ if not subgroup
var<workgroup> scratch: array<f32, {{ together * threads }}>;
$$ endif
var<workgroup> kept: array<f32, {{ parts * shelf }}>;
$$ if attr.eps is defined
var<workgroup> squares: array<f32, {{ parts * tokens }}>;
$$ endif
$$ if rounding
var<workgroup> rounded: array<f32, {{ items }}>;
{{ rounding_memory(threads, subgroup >= 8) }}
$$ endif
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % {{ lanes }}u;
    let part = index / {{ lanes }}u % {{ parts }}u;
    let team = index / {{ span }}u;
    let token = group.x * {{ tokens }}u;
$$ if items <= threads
    let mine = min(index, {{ items - 1 }}u);
{{ ahead() }}
$$ endif
$$ if attr.eps is defined
$$ for t in range(tokens)
    var square{{ t }} = 0.0;
$$ endfor
$$ endif
    {{ "for (var start = 0u; start < %du; start += %du) {" % (blocks, span) if span < blocks else "{" }}
        let whole = {{ "start + " if span < blocks }}part * {{ lanes }}u + lane;
        let block = {{ "min(whole, %du)" % (blocks - 1) if guarded else "whole" }};
        let begin = team * {{ rows }}u;
{{ ask("begin", "f") }}
$$ for r in range(rows)
$$ for part in held
        var w{{ r ~ part }} = f{{ r ~ part }};
$$ endfor
$$ endfor
$$ for t in range(tokens)
        let at{{ t }} = {{ "(token + %du)" % t if total % tokens == 0 else "min(token + %du, %du)" % (t, total - 1) }} * {{ blocks }}u + block;
        let low{{ t }} = {{ x.load4("2u * at%d" % t) }};
        let high{{ t }} = {{ x.load4("2u * at%d + 1u" % t) }};
        let scale{{ t }} = {{ scales.load4("at%d" % t) }}{{ " * f32(whole < %du)" % blocks if guarded }};
        let x{{ t }} = {{ "scale%d.xyz" % t if w.layout.halves else "vec2<f32>(scale%d.x, scale%d.y + scale%d.z)" % (t, t, t) if w.layout.shifted else "scale%d" % t }};
$$ if attr.eps is defined
        square{{ t }} += scale{{ t }}.w;
$$ endif
$$ endfor
        for (var step = 0u; step < {{ steps }}u; step++) {
            let line = (step * {{ teams }}u + team) * {{ rows }}u;
            let next = (min(step + 1u, {{ steps - 1 }}u) * {{ teams }}u + team) * {{ rows }}u;
{{ ask("next", "n") }}
            let spot = part * {{ shelf }}u + line * {{ pitch }}u;
$$ set alike = lanes // together
$$ for first in range(0, rows * tokens, together)
$$ set sums = []
$$ for r in range(first // tokens, (first + together) // tokens)
            let unit{{ r }} = {{ w.scaling("w%d" % r) }};
$$ for j in range(8)
            let c{{ r }}_{{ j }} = {{ w.word("w%d" % r, j) }};
$$ endfor
$$ for t in range(tokens)
            var sum{{ r }}_{{ t }} = {{ product(r, t) }};
$$ do sums.append("sum%d_%d" % (r, t))
$$ endfor
$$ endfor
$$ if subgroup
{{ spread(sums, lanes) }}
$$ else
{{ write(sums) }}
$$ endif
            {
                let nth = lane{{ " / %du" % alike if alike > 1 }}{{ " + %du" % first if first }};
                let home = spot + nth / {{ tokens }}u * {{ pitch }}u + nth % {{ tokens }}u;
                {{ "if (lane %% %du == 0u) " % alike if alike > 1 }}{
$$ if subgroup
                    kept[home] = {{ before }}{{ sums[0] }};
$$ else
{{ add("lane / %du" % alike if alike > 1 else "lane") }}
                    kept[home] = {{ before }}total;
$$ endif
                }
            }
$$ if not subgroup
            workgroupBarrier();
$$ endif
$$ endfor
$$ for r in range(rows)
$$ for part in held
            w{{ r ~ part }} = n{{ r ~ part }};
$$ endfor
$$ endfor
        }
    }
$$ if attr.eps is defined
$$ set squares = []
$$ for t in range(tokens)
$$ do squares.append("square%d" % t)
$$ endfor
$$ if subgroup
$$ for t in range(tokens)
    square{{ t }} = subgroupAdd(square{{ t }});
$$ endfor
    if (lane == 0u && team == 0u) {
$$ for t in range(tokens)
        squares[part * {{ tokens }}u + {{ t }}u] = square{{ t }};
$$ endfor
    }
$$ else
{{ write(squares) }}
    if (lane < {{ tokens }}u && team == 0u) {
{{ add("lane") }}
        squares[part * {{ tokens }}u + lane] = total;
    }
$$ endif
$$ endif
    workgroupBarrier();
$$ if items <= threads
    {
{{ result() }}
    }
$$ else
    for (var mine = index; mine < {{ items }}u; mine += {{ threads }}u) {
{{ ahead() }}
{{ result() }}
    }
$$ endif
$$ if rounding
    workgroupBarrier();
$$ for first in range(0, items // 4, threads)
    {
        let quad = min(index{{ " + %du" % first if first }}, {{ items // 4 - 1 }}u);
        let line = group.x * {{ tokens }}u + quad / {{ width // 4 }}u;
        let place = group.y * {{ width // 4 }}u + quad % {{ width // 4 }}u;
        let plain = vec4<f32>(rounded[4u * quad], rounded[4u * quad + 1u], rounded[4u * quad + 2u], rounded[4u * quad + 3u]);
$$ if rounding.weight
        let weighing = {{ rounding.weight.load4("min(place, %du)" % (N // each // 4 - 1)) }};
$$ endif
        let live = {{ "index + %du < %du && " % (first, items // 4) if first + threads > items // 4 }}place < {{ N // each // 4 }}u && line < {{ total }}u;
{{ round_quad(rounding.integers, rounding.scales, "plain", "weighing" if rounding.weight else "", "line * %du + place" % (N // each // 4), "live", subgroup >= 8) }}
    }
$$ endfor
$$ endif
}
