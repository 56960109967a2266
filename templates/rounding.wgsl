$# Round quads to 8-bit integers in blocks of 32, whose eight quads eight neighbouring invocations hold.

$$ macro rounding_memory(threads, shuffles)
$$ if not shuffles
var<workgroup> most_of: array<f32, {{ threads }}>;
var<workgroup> sum_of: array<vec2<f32>, {{ threads }}>;
$$ endif
$$ endmacro

$# Round the quad `plain` times `weight` (both vec4<f32> variables), and store it as quad `spot` of the result if `live`; all invocations come here.
$$ macro round_quad(integers, scales, plain, weight, spot, live, shuffles)
    {
        let product = {{ plain }}{{ " * " + weight if weight }};
        let magnitude = abs(product);
        var most = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
        var square = dot({{ plain }}, {{ plain }});
$$ if shuffles
$$ for step in (1, 2, 4)
        most = max(most, subgroupShuffleXor(most, {{ step }}u));
        square += subgroupShuffleXor(square, {{ step }}u);
$$ endfor
$$ else
        most_of[index] = most;
        workgroupBarrier();
$$ for k in range(8)
        most = max(most, most_of[index / 8u * 8u + {{ k }}u]);
$$ endfor
$$ endif
        let codes = vec4<i32>(round(product * select(0.0, 127.0 / most, most > 0.0)));
        var sum = codes.x + codes.y + codes.z + codes.w;
$$ if shuffles
        sum += subgroupShuffleXor(sum, 1u);
        sum += subgroupShuffleXor(sum, 2u);
        let other = subgroupShuffleXor(sum, 4u);
$$ else
        sum_of[index] = vec2<f32>(f32(sum), square);
        workgroupBarrier();
        let start = index / 8u * 8u;
        sum = i32(sum_of[start].x + sum_of[start + 1u].x + sum_of[start + 2u].x + sum_of[start + 3u].x);
        let other = i32(sum_of[start + 4u].x + sum_of[start + 5u].x + sum_of[start + 6u].x + sum_of[start + 7u].x);
        square = 0.0;
$$ for k in range(8)
        square += sum_of[start + {{ k }}u].y;
$$ endfor
        workgroupBarrier();
$$ endif
        if ({{ live }}) {
            {{ integers.store(spot, "pack4xI8(codes)") }};
            if ((index & 7u) == 0u) {
                let unit = most / 127.0;
                {{ scales.store4("(%s) / 8u" % spot, "vec4<f32>(unit, unit * f32(sum), unit * f32(other), square)") }};
            }
        }
    }
$$ endmacro
