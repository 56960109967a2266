const OCTAVES = 32u;           // tokens further than this below the best weigh nothing
const RECORD = 66u;            // words of a block's summary: tokens and mass in each of its octaves, best key, its index
const KEY_AT = 64u;
const INDEX_AT = 65u;

// 4096 * 2^f for a key's fraction f by a cubic in integers: an integer is the same everywhere, exp2 is not.
fn weight(key: i32) -> u32 {
    let x = bitcast<u32>(key) & 0xffffu;
    let inner = 22777u + ((x * (7460u + ((x * 2525u) >> 16u))) >> 16u);
    return 4096u + ((x * inner + 0x40000u) >> 19u);
}
