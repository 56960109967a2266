$# Floats as bit patterns, computed with integers: WGSL lets an adapter round a division and a conversion to f16 as it likes, fuse a product
$# with a sum and flush denormals.
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

fn order(a: u32) -> i32 {       // integers in the order of the floats; its own inverse
    return bitcast<i32>(select(a, a ^ 0x7fffffffu, (a & SIGN) != 0u));
}

fn clipped(a: u32) -> u32 {     // to f16, whose largest number is the largest result
    return half_of((a & SIGN) | min(magnitude(a), 0x477fe000u));
}

fn whole(n: i32) -> u32 {       // the float of an integer
    if (n == 0) { return 0u; }
    return select(0u, SIGN, n < 0) | single(u32(abs(n)), 0);
}
