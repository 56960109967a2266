$# Turn numbers into the planes of a quantized layout, to the bit as quantizers.py does: floats are bit patterns here, and integers compute.
$# An invocation takes 32 elements; those of one group have its scale together. kind: the quantizer; group: elements under one scale;
$# source: f32, bf16 or f16. Numbers among the specialisations (most, offset, middles) are f32 bits too.
@group(0) @binding(0) var<storage, read> source: array<u32>;
$$ for plane in planes
@group(0) @binding({{ loop.index }}) var<storage, read_write> {{ plane }}: array<u32>;
$$ endfor

{$ include "requantization_floats.wgsl" $}

fn number(i: u32) -> u32 {
$$ if source == "f32"
    return source[i];
$$ else
    let bits = (source[i >> 1u] >> ((i & 1u) << 4u)) & 0xffffu;
    return {{ "bits << 16u" if source == "bf16" else "widened(bits)" }};
$$ endif
}

struct Scale { inverse: u32, low: u32, zero: i32, d: u32, m: u32 }

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
{$ include "requantization_k.wgsl" if shared else "requantization_groups.wgsl" $}

fn store_codes(block: u32, s: array<Scale, 2>) {        // of 32 elements, whose halves may have scales of their own
$$ if bits == 8
    for (var w = 0u; w < 8u; w++) {
        var word = 0u;
        for (var k = 0u; k < 4u; k++) { word |= code(block * 32u + w * 4u + k, s[0]) << (8u * k); }
        codes[block * 8u + w] = word;
    }
$$ else
    var above = vec2<u32>();        // what codes have above four bits
    for (var w = 0u; w < 4u; w++) {
        var word = 0u;
        for (var k = 0u; k < 4u; k++) {
            let low = code(block * 32u + w * 4u + k, s[0]);
            let high = code(block * 32u + w * 4u + k + 16u, s[1]);
            word |= ((low & 15u) | ((high & 15u) << 4u)) << (8u * k);
$$ if bits == 5
            above.x |= ((low >> 4u) << (8u * k + w)) | ((high >> 4u) << (8u * k + w + 4u));
$$ elif bits == 6
            above |= vec2<u32>(low >> 4u, high >> 4u) << vec2<u32>(8u * k + 2u * w);
$$ endif
        }
        codes[block * 4u + w] = word;
    }
$$ if bits == 5
    more_bits[block] = above.x;
$$ elif bits == 6
    more_bits[2u * block] = above.x;
    more_bits[2u * block + 1u] = above.y;
$$ endif
$$ endif
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(global_invocation_id) at: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let blocks = arrayLength(&source) / {{ 32 if source == "f32" else 16 }}u;
    let live = at.x < blocks;
    let s = scales_of(at.x, index, live);
    if (live) { store_codes(at.x, s); }
    store_scales(at.x, index, blocks, s);
}
