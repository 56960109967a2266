$# Turn numbers into the planes of a quantized layout, to the bit as quantizers.py does. WGSL lets an adapter round a division and a
$# conversion to f16 as it likes, fuse a product with a sum and flush denormals, so floats are bit patterns here and integers compute.
$# kind: the quantizer; group: elements under one scale; share: groups whose scales share words; source: f32, bf16 or f16. Numbers among
$# the specialisations (most, offset, middles) are f32 bits too.
@group(0) @binding(0) var<storage, read> source: array<u32>;
$$ for plane in planes
@group(0) @binding({{ loop.index }}) var<storage, read_write> {{ plane }}: array<u32>;
$$ endfor

const INFINITY = 0x7f800000u;
const NAN = 0x7fc00000u;
const ONE = 0x3f800000u;
const SIGN = 0x80000000u;

struct Parts { m: u32, e: i32 }     // m * 2^e, m of 24 bits

fn parts(a: u32) -> Parts {
    let fraction = a & 0x7fffffu;
    let e = i32((a >> 23u) & 255u);
    if (e > 0) { return Parts(fraction | 0x800000u, e - 150); }
    let shift = countLeadingZeros(fraction | 1u) - 8u;
    return Parts(fraction << shift, -149 - i32(shift));
}

fn magnitude(a: u32) -> u32 { return a & ~SIGN; }

fn shifted(m: u32, k: u32) -> u32 {     // to the right; the lowest bit tells of lost ones
    return (m >> k) | u32((m & ((1u << k) - 1u)) != 0u);
}

fn nearest(m: u32, drop: u32) -> u32 {      // m without its lowest bits, to nearest and then to even
    let kept = m >> drop;
    let rest = m & ((1u << drop) - 1u);
    let half = (1u << drop) >> 1u;
    return kept + u32(drop > 0u && (rest > half || (rest == half && (kept & 1u) == 1u)));
}

fn float_of(m: u32, e: i32, keep: u32, bias: i32, top: i32) -> u32 {    // m * 2^e, m > 0, in a float format with so many bits
    let zeros = countLeadingZeros(m);
    let exponent = e - i32(zeros) + 31 + bias;
    if (exponent >= top) { return u32(top) << (keep - 1u); }
    let kept = nearest(shifted(m << zeros, u32(clamp(1 - exponent, 0, 31))), 32u - keep);
    return kept + (u32(max(exponent, 1) - 1) << (keep - 1u));
}

fn single(m: u32, e: i32) -> u32 { return float_of(m, e, 24u, 127, 255); }

fn half_of(a: u32) -> u32 {
    let sign = (a & SIGN) >> 16u;
    if (magnitude(a) == 0u || magnitude(a) >= INFINITY) { return sign | select(0u, 0x7c00u, magnitude(a) > 0u); }
    let p = parts(a);
    return sign | float_of(p.m, p.e, 11u, 15, 31);
}

fn widened(h: u32) -> u32 {     // the f32 of an f16
    let sign = (h & 0x8000u) << 16u;
    let e = (h >> 10u) & 31u;
    let fraction = h & 1023u;
    if (e == 31u) { return sign | INFINITY | (fraction << 13u); }
    if (e > 0u) { return sign | ((e + 112u) << 23u) | (fraction << 13u); }
    if (fraction == 0u) { return sign; }
    return sign | single(fraction, -24);
}

fn times(a: u32, b: u32) -> u32 {
    let sign = (a ^ b) & SIGN;
    let big = max(magnitude(a), magnitude(b));
    let small = min(magnitude(a), magnitude(b));
    if (small == 0u) { return select(sign, NAN, big >= INFINITY); }
    if (big >= INFINITY) { return select(sign | INFINITY, NAN, big > INFINITY); }
    let p = parts(big);
    let q = parts(small);
    let middle = (p.m >> 12u) * (q.m & 4095u) + (p.m & 4095u) * (q.m >> 12u);
    let low = ((middle & 4095u) << 12u) + (p.m & 4095u) * (q.m & 4095u);
    let high = (p.m >> 12u) * (q.m >> 12u) + (middle >> 12u) + (low >> 24u);
    return sign | single((high << 8u) | shifted(low & 0xffffffu, 16u), p.e + q.e + 16);
}

fn ratio(a: u32, b: u32) -> u32 {       // b is not 0
    let sign = (a ^ b) & SIGN;
    if (magnitude(b) >= INFINITY || magnitude(a) == 0u) { return sign; }
    if (magnitude(a) >= INFINITY) { return sign | INFINITY; }
    let p = parts(a);
    let q = parts(b);
    var rest = p.m;
    var quotient = 0u;
    for (var i = 0u; i < 28u; i++) {
        let fits = rest >= q.m;
        quotient = (quotient << 1u) | u32(fits);
        rest = (rest - select(0u, q.m, fits)) << 1u;
    }
    return sign | single(quotient | u32(rest != 0u), p.e - q.e - 27);
}

fn inverse(d: u32) -> u32 {
    if (magnitude(d) == 0u) { return 0u; }
    return ratio(ONE, d);
}

fn plus(a: u32, b: u32) -> u32 {
    let swap = magnitude(b) > magnitude(a);
    let big = select(a, b, swap);
    let small = select(b, a, swap);
    if (magnitude(big) >= INFINITY) { return big; }
    if (magnitude(small) == 0u) { return select(big, big & small, magnitude(big) == 0u); }
    let p = parts(magnitude(big));
    let q = parts(magnitude(small));
    let aligned = shifted(q.m << 7u, u32(min(p.e - q.e, 31)));
    let sum = select((p.m << 7u) - aligned, (p.m << 7u) + aligned, ((big ^ small) & SIGN) == 0u);
    if (sum == 0u) { return 0u; }
    return (big & SIGN) | single(sum, p.e - 7);
}

fn minus(a: u32, b: u32) -> u32 { return plus(a, b ^ SIGN); }

fn signed(whole: u32, a: u32) -> i32 { return select(i32(whole), -i32(whole), (a & SIGN) != 0u); }

fn byte_of(a: u32) -> u32 {     // the lowest byte of the integer towards zero, as the host's processor converts; 0 if it has over 31 bits
    let e = i32((a >> 23u) & 255u) - 127;
    if (e < 0 || e > 30) { return 0u; }
    let m = (a & 0x7fffffu) | 0x800000u;
    return u32(signed(select(m >> u32(max(23 - e, 0)), m << u32(max(e - 23, 0)), e > 23), a)) & 255u;
}

fn integer(a: u32) -> i32 {     // to nearest and then to even, at most 2^23
    let e = i32((a >> 23u) & 255u) - 127;
    if (e < -1) { return 0; }
    return signed(select(nearest((a & 0x7fffffu) | 0x800000u, u32(clamp(23 - e, 0, 24))), 0x800000u, e > 22), a);
}

fn away(a: u32) -> u32 {        // the lowest byte of the nearest integer, halves away from zero
    let e = i32((a >> 23u) & 255u) - 127;
    if (e < -1 || e > 22) { return 0u; }
    let m = (a & 0x7fffffu) | 0x800000u;
    return u32(signed(((m >> u32(22 - e)) + 1u) >> 1u, a)) & 255u;
}

fn number(i: u32) -> u32 {
$$ if source == "f32"
    return source[i];
$$ else
    let bits = (source[i >> 1u] >> ((i & 1u) << 4u)) & 0xffffu;
    return {{ "bits << 16u" if source == "bf16" else "widened(bits)" }};
$$ endif
}

fn order(a: u32) -> i32 {       // integers in the order of the floats; its own inverse
    return bitcast<i32>(select(a, a ^ 0x7fffffffu, (a & SIGN) != 0u));
}

struct Scale { inverse: u32, low: u32, zero: i32, d: u32, m: u32 }

struct Reach { low: u32, high: u32, far: u32 }      // the least, the largest and the first number of the largest magnitude

fn reach(first: u32) -> Reach {
    var far = number(first);
    var low = order(far);
    var high = low;
    for (var i = 1u; i < {{ group }}u; i++) {
        let x = number(first + i);
        low = min(low, order(x));
        high = max(high, order(x));
        if (magnitude(x) > magnitude(far)) { far = x; }
    }
    return Reach(bitcast<u32>(order(bitcast<u32>(low))), bitcast<u32>(order(bitcast<u32>(high))), far);
}

$$ if kind in ("symmetric", "zero_pointed")
fn clipped(d: u32) -> u32 { return half_of(min(d, 0x477fe000u)); }      // to the largest f16

$$ endif
$$ if kind == "minifloat"
// For every power of two from 2^-149 on, a byte: how many of the floats right below it have it as their log2.
const ROUNDED_UP = array<u32, {{ rounded_up | length }}>({{ rounded_up | join("u, ") }}u);

fn power_of(peak: u32) -> u32 {
    let p = parts(peak);
    let next = p.e + 24;        // the power of two above
    let pattern = select(1u << u32(clamp(next + 149, 0, 31)), u32(max(next + 127, 0)) << 23u, next >= -126);
    let at = u32(next + 149);
    let up = extractBits(ROUNDED_UP[at >> 2u], (at & 3u) << 3u, 8u);
    return u32(next + 124 + i32(pattern - peak <= up)) & 255u;
}

var<private> middles: array<u32, 7>;

$$ endif
fn scale_of(first: u32) -> Scale {
    let r = reach(first);
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

fn store_codes(block: u32, s: Scale) {      // of 32 elements
$$ if bits == 8
    for (var w = 0u; w < 8u; w++) {
        var word = 0u;
        for (var k = 0u; k < 4u; k++) { word |= code(block * 32u + w * 4u + k, s) << (8u * k); }
        {{ planes[0] }}[block * 8u + w] = word;
    }
$$ else
$$ if bits == 5
    var fifth = 0u;
$$ endif
    for (var w = 0u; w < 4u; w++) {
        var word = 0u;
        for (var k = 0u; k < 4u; k++) {
            let low = code(block * 32u + w * 4u + k, s);
            let high = code(block * 32u + w * 4u + k + 16u, s);
            word |= ((low & 15u) | ((high & 15u) << 4u)) << (8u * k);
$$ if bits == 5
            fifth |= ((low >> 4u) << (8u * k + w)) | ((high >> 4u) << (8u * k + w + 4u));
$$ endif
        }
        {{ planes[0] }}[block * 4u + w] = word;
    }
$$ if bits == 5
    {{ planes[1] }}[block] = fifth;
$$ endif
$$ endif
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let groups = arrayLength(&source) / {{ group // (1 if source == "f32" else 2) }}u;
    var words: array<u32, 2>;
    let first = at.x * {{ share }}u;
$$ if kind == "zero_pointed"
    var zeros = 0u;
$$ endif
    if (first >= groups) { return; }
    for (var j = 0u; j < {{ share }}u && first + j < groups; j++) {
        let s = scale_of((first + j) * {{ group }}u);
        for (var b = 0u; b < {{ group // 32 }}u; b++) { store_codes((first + j) * {{ group // 32 }}u + b, s); }
$$ if kind == "zero_pointed"
        words[j >> 1u] |= s.d << ((j & 1u) << 4u);
        zeros |= (u32(s.zero - {{ centre }}) & 255u) << (8u * j);
$$ elif kind == "minifloat"
        words[0] |= s.d << (8u * j);
$$ elif kind == "ranged"
        words[0] = s.d | (s.m << 16u);
$$ else
        words[0] |= s.d << (j << 4u);
$$ endif
    }
$$ if kind == "zero_pointed"
    scales[2u * at.x] = words[0];
    if (first + 2u < groups) { scales[2u * at.x + 1u] = words[1]; }
    zero_points[at.x] = zeros;
$$ else
    scales[at.x] = words[0];
$$ endif
}
