$# As rows.wgsl, with x rounded to 8-bit integers in blocks of 32 (a scale each) and integer dot products. A workgroup rounds x by itself,
$# chunk by chunk into workgroup memory, which is cheaper than one more dispatch; the first blocks of W are already on their way then.
{$ from "rows.wgsl" import K, N, sums, threads, product with context $}
$$ set blocks = K // 32
$$ set chunks = (blocks + chunk - 1) // chunk

$# Per token: integers of a block's first and second 16 elements apart, so that neighbours read neighbouring banks; and scale,
$# scale * sum of the integers, sum of squares.
$$ macro rounded()
$$ for t in range(tokens)
var<workgroup> integers{{ t }}: array<vec4<u32>, {{ 2 * chunk }}>;
var<workgroup> scales{{ t }}: array<vec4<f32>, {{ chunk }}>;
$$ endfor
$$ endmacro

$$ macro round_chunk(c, factor)
$$ set count = chunk if blocks % chunk == 0 or c < chunks - 1 else blocks % chunk
    for (var block = index; block < {{ count }}u; block += {{ threads }}u) {
        let at = block + {{ c * chunk }}u;
$$ if norm and norm.weight
$$ for j in range(8)
        let g{{ j }} = {{ norm.weight.load4("at * 8u + %du" % j) }};
$$ endfor
$$ endif
$$ for t in range(tokens)
        {
            var most = 0.0;
            var square = 0.0;
$$ for j in range(8)
            let x{{ j }} = {{ x.load4("x%d + at * 8u + %du" % (t, j)) }};
            square += dot(x{{ j }}, x{{ j }});
            let v{{ j }} = x{{ j }}{{ " * g%d" % j if norm and norm.weight }}{{ " * " + factor if factor }};
            let m{{ j }} = abs(v{{ j }});
            most = max(most, max(max(m{{ j }}.x, m{{ j }}.y), max(m{{ j }}.z, m{{ j }}.w)));
$$ endfor
            let inverse = select(0.0, 127.0 / most, most > 0.0);
            var words: array<u32, 8>;
            var total = 0;
$$ for j in range(8)
            let i{{ j }} = vec4<i32>(round(v{{ j }} * inverse));
            total += i{{ j }}.x + i{{ j }}.y + i{{ j }}.z + i{{ j }}.w;
            words[{{ j }}] = pack4xI8(i{{ j }});
$$ endfor
            integers{{ t }}[block] = vec4<u32>(words[0], words[1], words[2], words[3]);
            integers{{ t }}[block + {{ chunk }}u] = vec4<u32>(words[4], words[5], words[6], words[7]);
            let scale = most / 127.0;
            scales{{ t }}[block] = vec4<f32>(scale, scale * f32(total), square, 0.0);
        }
$$ endfor
    }
$$ endmacro

$# Fetch `unroll` blocks of each row from `start` on, at the step's places that lie in the chunk.
$$ macro fetch_blocks(start, c, count, prefix)
$$ for u in range(unroll)
    let {{ prefix }}b{{ u }} = {{ "%s + %du" % (start, u * lanes) if count % (lanes * unroll) == 0 else "min(%s + %du, %du)" % (start, u * lanes, count - 1) }};
$$ for r in range(rows)
    {{ w.fetch("row%d + %sb%d + %du" % (r, prefix, u, c * chunk), "%sw%d_%d" % (prefix, r, u)) }}
$$ endfor
$$ endfor
$$ endmacro

$$ macro add_blocks(start, c, count, prefix)
$$ for u in range(unroll)
$$ for t in range(tokens)
    {
        let low = integers{{ t }}[{{ prefix }}b{{ u }}];
        let high = integers{{ t }}[{{ prefix }}b{{ u }} + {{ chunk }}u];
        let scale = scales{{ t }}[{{ prefix }}b{{ u }}]{{ "" if count % (lanes * unroll) == 0 else " * f32(%s + %du < %du)" % (start, u * lanes, count) }};
$$ for r in range(rows)
        sum{{ r }}_{{ t }} += {{ w.dot("%sw%d_%d" % (prefix, r, u), "low", "high", "scale") }};
$$ endfor
$$ if norm
        square{{ t }} += scale.z;
$$ endif
    }
$$ endfor
$$ endfor
$$ endmacro

$$ macro products(base="", factor="")
$$ for r in range(rows)
$$ set row = "first + %du" % r
    let row{{ r }} = ({{ base + " + " if base }}{{ row if N % (rows * groups) == 0 else "min(%s, %du)" % (row, N - 1) }}) * {{ blocks }}u;
$$ endfor
$$ for c in range(chunks)
$$ set count = chunk if blocks % chunk == 0 or c < chunks - 1 else blocks % chunk
    {
{{ fetch_blocks("lane", c, count, "p") }}
{{ "    workgroupBarrier();" if c or base }}
{{ round_chunk(c, factor) }}
    workgroupBarrier();
{{ add_blocks("lane", c, count, "p") }}
$$ if count > lanes * unroll
    for (var next = lane + {{ lanes * unroll }}u; next < {{ (count + lanes * unroll - 1) // (lanes * unroll) * lanes * unroll }}u; next += {{ lanes * unroll }}u) {
{{ fetch_blocks("next", c, count, "n") }}
{{ add_blocks("next", c, count, "n") }}
    }
$$ endif
    }
$$ endfor
$$ endmacro
