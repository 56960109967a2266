$# What the attention kernels share. mask, window, cap: the op's attributes; their keys and values are read by `unit`s.

$# first_key(p): the first position that a query at p sees. bend(s): a score after the soft cap.
$$ macro rules(mask, window, cap)
$$ if mask == "full"
fn first_key(p: i32) -> i32 { return 0; }
$$ elif mask == "chunked"
fn first_key(p: i32) -> i32 { return p / {{ window }} * {{ window }}; }
$$ else
fn first_key(p: i32) -> i32 { return max(0, p - {{ window - 1 }}); }
$$ endif
$$ if cap
fn bend(s: f32) -> f32 { return {{ cap }} * tanh(clamp(s / {{ cap }}, -15.0, 15.0)); }
$$ else
fn bend(s: f32) -> f32 { return s; }
$$ endif
$$ endmacro

$# Workgroup memory that `across` needs for `count` names.
$$ macro shared_lanes(count, cols, threads, subgroup)
$$ if not subgroup and cols > 1
var<workgroup> shared_lanes: array<f32, {{ count * threads }}>;
$$ endif
$$ endmacro

$# Sum or maximum over `cols` neighbouring invocations (a power of two, at most a subgroup); every one of them gets it.
$$ macro across(op, names, cols, threads, subgroup)
$$ set combined = "max(%s, %s)" if op == "max" else "%s + %s"
$$ if subgroup
$$ for k in range(6) if 2 ** k < cols
$$ for name in names
    {{ name }} = {{ combined % (name, "subgroupShuffleXor(%s, %du)" % (name, 2 ** k)) }};
$$ endfor
$$ endfor
$$ elif cols > 1
$$ for name in names
    shared_lanes[{{ loop.index0 * threads }}u + index] = {{ name }};
$$ endfor
    workgroupBarrier();
    {
        let mates = index / {{ cols }}u * {{ cols }}u;
$$ for name in names
        {{ name }} = shared_lanes[mates + {{ loop.index0 * threads }}u];
$$ endfor
        for (var i = 1u; i < {{ cols }}u; i++) {
$$ for name in names
            {{ name }} = {{ combined % (name, "shared_lanes[mates + %du + i]" % (loop.index0 * threads)) }};
$$ endfor
        }
    }
    workgroupBarrier();
$$ endif
$$ endmacro
