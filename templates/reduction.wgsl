$# Sum or maximum over the `lanes` invocations that share a result; every one of them gets it.
$# lanes: a power of two; threads: the workgroup; subgroup: its size, or 0 to go through workgroup memory.

$$ macro scratch(count, lanes, threads, subgroup)
$$ if not subgroup
var<workgroup> scratch: array<f32, {{ count * threads }}>;
$$ elif lanes > subgroup
var<workgroup> scratch: array<f32, {{ count * threads // subgroup }}>;
$$ endif
$$ endmacro

$$ macro combine(op, a, b)
{{ "max(%s, %s)" % (a, b) if op == "max" else "%s + %s" % (a, b) }}
$$- endmacro

$$ macro reduce(op, names, lanes, threads, subgroup)
$$ if subgroup
$$ for name in names
    {{ name }} = {{ "subgroupMax" if op == "max" else "subgroupAdd" }}({{ name }});
$$ endfor
$$ if lanes > subgroup
$$ set parts = threads // subgroup
    if (index % {{ subgroup }}u == 0u) {
$$ for name in names
        scratch[{{ loop.index0 * parts }}u + index / {{ subgroup }}u] = {{ name }};
$$ endfor
    }
    workgroupBarrier();
$$ for name in names
    {{ name }} = scratch[{{ loop.index0 * parts }}u + (index / {{ lanes }}u) * {{ lanes // subgroup }}u];
$$ set at = loop.index0 * parts
$$ for k in range(1, lanes // subgroup)
    {{ name }} = {{ combine(op, name, "scratch[%du + (index / %du) * %du]" % (at + k, lanes, lanes // subgroup)) }};
$$ endfor
$$ endfor
    workgroupBarrier();
$$ endif
$$ else
$$ for name in names
    scratch[{{ loop.index0 * threads }}u + index] = {{ name }};
$$ endfor
    workgroupBarrier();
    {
        let place = index % {{ lanes }}u;
        let first_place = index / {{ lanes }}u * {{ lanes }}u;
        for (var stride = {{ lanes // 2 }}u; stride > 0u; stride /= 2u) {
            if (place < stride) {
$$ for name in names
$$ set at = "scratch[%du + " % (loop.index0 * threads)
                {{ at }}first_place + place] = {{ combine(op, at + "first_place + place]", at + "first_place + place + stride]") }};
$$ endfor
            }
            workgroupBarrier();
        }
    }
$$ for name in names
    {{ name }} = scratch[{{ loop.index0 * threads }}u + index / {{ lanes }}u * {{ lanes }}u];
$$ endfor
    workgroupBarrier();
$$ endif
$$ endmacro

$# The sums of several names over a subgroup, one an invocation: as many shuffles as names, where `reduce` takes the logarithm of the
$# subgroup for each. names: as many as a power of two, at most `subgroup`. Sum number v ends in the first name of the subgroup's
$# invocation v * subgroup / (number of names), and of those after it.
$$ macro spread(names, subgroup)
$$ set count = names | length
$$ for k in range(10) if 2 ** (k + 1) <= subgroup
$$ set half, far = count // 2 ** (k + 1), subgroup // 2 ** (k + 1)
$$ if half
    {
        let upper = (index & {{ far }}u) != 0u;
$$ for i in range(half)
        {{ names[i] }} = select({{ names[i] }}, {{ names[i + half] }}, upper) + subgroupShuffleXor(select({{ names[i + half] }}, {{ names[i] }}, upper), {{ far }}u);
$$ endfor
    }
$$ else
    {{ names[0] }} += subgroupShuffleXor({{ names[0] }}, {{ far }}u);
$$ endif
$$ endfor
$$ endmacro
