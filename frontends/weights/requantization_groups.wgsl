$# Scales of whole groups: by the least, the largest, and the first number of the largest magnitude.
struct Reach { low: u32, high: u32, far: u32 }

fn reach(block: u32) -> Reach {
    var far = number(block * 32u);
    var low = order(far);
    var high = low;
    for (var i = 1u; i < 32u; i++) {
        let x = number(block * 32u + i);
        low = min(low, order(x));
        high = max(high, order(x));
        if (magnitude(x) > magnitude(far)) { far = x; }
    }
    return Reach(bitcast<u32>(order(bitcast<u32>(low))), bitcast<u32>(order(bitcast<u32>(high))), far);
}

fn scale_of(r: Reach) -> Scale {
$$ if kind == "rounded"
    let d = ratio(magnitude(r.far), {{ most }}u);
    return Scale(inverse(d), 0u, 0, half_of(d), 0u);
$$ elif kind == "signed"
    let d = ratio(r.far, {{ most }}u);
    return Scale(inverse(d), 0u, 0, half_of(d), 0u);
$$ elif kind == "ranged"
    let d = ratio(minus(r.high, r.low), {{ most }}u);
    return Scale(inverse(d), r.low, 0, half_of(d), half_of(r.low));
$$ elif kind == "symmetric"
    let d = clipped(ratio(magnitude(r.far), {{ most }}u));
    return Scale(inverse(widened(d)), 0u, 0, d, 0u);
$$ elif kind == "zero_pointed"
    let low = select(0u, r.low, (r.low & SIGN) != 0u);
    let high = select(r.high, 0u, (r.high & SIGN) != 0u);
    let d = clipped(minus(ratio(high, {{ most }}u), ratio(low, {{ most }}u)));
    let fine = inverse(widened(d));
    return Scale(fine, 0u, clamp(integer(times(low ^ SIGN, fine)), 0, {{ top }}), d, 0u);
$$ else
    let peak = magnitude(r.far);
    var e = 0u;
    if (peak > 0u) { e = power_of(peak); }
    let d = select((e - 1u) << 23u, 0x00200000u << min(e, 1u), e < 2u);
$$ for middle in middles
    middles[{{ loop.index0 }}] = times(d, {{ middle }}u);
$$ endfor
    return Scale(0u, 0u, 0, e, 0u);
$$ endif
}

fn code(i: u32, s: Scale) -> u32 {
    let x = number(i);
$$ if kind == "rounded"
    return away(times(x, s.inverse));
$$ elif kind == "signed"
    return min(byte_of(plus(times(x, s.inverse), {{ offset }}u)), {{ top }}u);
$$ elif kind == "ranged"
    return min(byte_of(plus(times(minus(x, s.low), s.inverse), {{ offset }}u)), {{ top }}u);
$$ elif kind == "symmetric"
    return u32(clamp(integer(times(x, s.inverse)), -{{ top }}, {{ top }}) + {{ centre }}) & 255u;
$$ elif kind == "zero_pointed"
    return u32(clamp(integer(times(x, s.inverse)) + s.zero, 0, {{ top }}) - {{ centre }}) & 255u;
$$ else
    var q = 0u;
    for (var j = 0u; j < 7u; j++) { q += u32(magnitude(x) > middles[j]); }
    return q | select(0u, 8u, q > 0u && (x & SIGN) != 0u);
$$ endif
}

$$ set count = group // 32
$$ if count > 1
var<workgroup> reaches: array<Reach, {{ lanes }}>;

$$ endif
fn scales_of(block: u32, index: u32, live: bool) -> array<Scale, 2> {
    var r = Reach();
    if (live) { r = reach(block); }
$$ if count > 1
    reaches[index] = r;
    workgroupBarrier();
    let first = index & ~{{ count - 1 }}u;
    r = reaches[first];
    for (var i = first + 1u; i < first + {{ count }}u; i++) {
        let other = reaches[i];
        if (order(other.low) < order(r.low)) { r.low = other.low; }
        if (order(other.high) > order(r.high)) { r.high = other.high; }
        if (magnitude(other.far) > magnitude(r.far)) { r.far = other.far; }
    }
$$ endif
    let s = scale_of(r);
    return array<Scale, 2>(s, s);
}

$$ set groups = lanes // count
var<workgroup> kept: array<vec2<u32>, {{ groups }}>;

fn store_scales(block: u32, index: u32, blocks: u32, s: array<Scale, 2>) {
    if (index % {{ count }}u == 0u) {
        kept[index / {{ count }}u] = select(vec2<u32>(), vec2<u32>(s[0].d, {{ "u32(s[0].zero - %d) & 255u" % centre if kind == "zero_pointed" else "s[0].m" }}), block < blocks);
    }
    workgroupBarrier();
    let start = (block - index) / {{ count }}u;         // the workgroup's first group
    let groups = blocks / {{ count }}u;
$$ set each = {"ranged": 1, "minifloat": 4}.get(kind, 2)
    if (index < {{ groups // each }}u && start + index * {{ each }}u < groups) {
$$ if kind == "ranged"
        scales[start + index] = kept[index].x | (kept[index].y << 16u);
$$ else
        var word = 0u;
        for (var j = 0u; j < {{ each }}u; j++) { word |= kept[index * {{ each }}u + j].x << ({{ 32 // each }}u * j); }
        scales[start / {{ each }}u + index] = word;
$$ endif
    }
$$ if kind == "zero_pointed"
    if (index < {{ groups // 4 }}u && start + index * 4u < groups) {
        var word = 0u;
        for (var j = 0u; j < 4u; j++) { word |= kept[index * 4u + j].y << (8u * j); }
        zero_points[start / 4u + index] = word;
    }
$$ endif
}
