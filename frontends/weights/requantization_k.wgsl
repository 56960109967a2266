$# Scales that 256 elements share: each of 32 (q4_k, q5_k) or 16 (q6_k) has a least-squares scale, kept as a multiple of what the 256 have.
$# The search is over integers: steps of the 16384th part of a largest magnitude.
var<private> t: array<i32, 32>;

fn in_steps(first: u32, begin: u32, end: u32) -> u32 {       // elements of a block, into t; gives the step
    var peak = 0u;
    for (var i = begin; i < end; i++) { peak = max(peak, magnitude(number(first + i))); }
    if (peak < {{ tiny }}u) { peak = 0u; }
    let fine = times({{ steps }}u, inverse(peak));
    for (var i = begin; i < end; i++) { t[i] = integer(times(number(first + i), fine)); }
    return times(peak, {{ step }}u);
}

$$ if kind == "k_ranged"
fn wish(first: u32) -> vec2<u32> {      // scale and size of the minimum that suit a block best
    let step = in_steps(first, 0u, 32u);
    var total = 0;
    var low = 0;
    var high = 0;
    for (var i = 0u; i < 32u; i++) {
        total += t[i];
        low = min(low, t[i]);
        high = max(high, t[i]);
    }
    let extent = max(high - low, 1);
    let sum = whole(total);
    var scale = 0u;
    var least = 0u;
    var best = 0;
    for (var more = -4; more <= 4; more++) {
        let factor = (({{ 4 * top }} + more) << 22u) / extent;
        var sums = 0;
        var squares = 0;
        var products = 0;
        for (var i = 0u; i < 32u; i++) {
            let q = min(((t[i] - low) * factor + {{ 2**23 }}) >> 24u, {{ top }});
            sums += q;
            squares += q * q;
            products += q * t[i];
        }
        let product = whole(products);
        var d = times(whole(32 * products - sums * total), inverse(whole(32 * squares - sums * sums)));
        var m = times(minus(sum, times(d, whole(sums))), {{ part }}u);
        if (bitcast<i32>(m) > 0) {
            d = times(product, inverse(whole(squares)));
            m = 0u;
        }
        let gain = bitcast<i32>(plus(times(d, product), times(m, sum)));
        if (gain > best) {
            scale = d;
            least = m;
            best = gain;
        }
    }
    return vec2<u32>(magnitude(times(scale, step)), magnitude(times(least, step)));
}
$$ else
fn wish(first: u32) -> vec2<u32> {      // the scales that suit the halves of a block best
    var result: vec2<u32>;
    for (var h = 0u; h < 2u; h++) {
        let step = in_steps(first, 16u * h, 16u * h + 16u);
        var low = 0;
        var high = 0;
        for (var i = 16u * h; i < 16u * h + 16u; i++) {
            low = min(low, t[i]);
            high = max(high, t[i]);
        }
        let sign = select(1, -1, high > -low);
        var scale = 0u;
        var best = 0;
        for (var more = -4; more <= 4; more++) {
            var squares = 0;
            var products = 0;
            for (var i = 16u * h; i < 16u * h + 16u; i++) {
                let q = clamp((t[i] * sign * (128 + more) + 32768) >> 16u, -32, 31);
                squares += q * q;
                products += q * t[i] * sign;
            }
            let product = whole(products);
            let fine = inverse(whole(squares));
            let gain = bitcast<i32>(times(times(product, product), fine));
            if (gain > best) {
                scale = times(product, fine);
                best = gain;
            }
        }
        result[h] = times(scale, step ^ select(0u, SIGN, sign < 0));
    }
    return result;
}
$$ endif

fn code(i: u32, s: Scale) -> u32 {
$$ if kind == "k_ranged"
    return u32(clamp(integer(times(plus(number(i), s.low), s.inverse)), 0, {{ top }}));
$$ else
    return u32(clamp(integer(times(number(i), s.inverse)), -32, 31) + 32);
$$ endif
}

var<workgroup> wished: array<vec2<u32>, {{ lanes }}>;

fn scales_of(block: u32, index: u32, live: bool) -> array<Scale, 2> {
    var mine: vec2<u32>;
    if (live) { mine = wish(block * 32u); }
    wished[index] = mine;
    workgroupBarrier();
    let first = index & ~7u;
$$ if kind == "k_ranged"
    var most: vec2<u32>;
    for (var i = first; i < first + 8u; i++) { most = max(most, wished[i]); }
    let d = clipped(ratio(most.x, {{ most }}u));
    let m = clipped(ratio(most.y, {{ most }}u));
    let scale = clamp(integer(times(mine.x, inverse(widened(d)))), 0, 63);
    let least = clamp(integer(times(mine.y, inverse(widened(m)))), 0, 63);
    let s = Scale(inverse(times(widened(d), whole(scale))), times(widened(m), whole(least)), scale | (least << 8u), d, m);
    return array<Scale, 2>(s, s);
$$ else
    var far = wished[first].x;
    for (var i = 0u; i < 16u; i++) {
        let other = wished[first + i / 2u][i % 2u];
        if (magnitude(other) > magnitude(far)) { far = other; }
    }
    let d = clipped(ratio(far, {{ most }}u));
    let fine = inverse(widened(d));
    var s: array<Scale, 2>;
    for (var h = 0u; h < 2u; h++) {
        let scale = clamp(integer(times(mine[h], fine)), -128, 127);
        s[h] = Scale(inverse(times(widened(d), whole(scale))), 0u, scale & 255, d, 0u);
    }
    return s;
$$ endif
}

var<workgroup> kept: array<u32, {{ lanes }}>;

fn store_scales(block: u32, index: u32, blocks: u32, s: array<Scale, 2>) {
    kept[index] = u32(s[0].zero){{ " | (u32(s[1].zero) << 8u)" if kind == "k_centred" }};
    workgroupBarrier();
    if (block < blocks) {
        let record = (block >> 3u) * 5u;
        if ((index & 1u) == 0u) { scales[record + ((block >> 1u) & 3u)] = kept[index] | (kept[index + 1u] << 16u); }
        if ((index & 7u) == 0u) { scales[record + 4u] = s[0].d | (s[0].m << 16u); }
    }
}
