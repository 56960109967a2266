/** CRC-32 as in zip and PNG, eight bytes at a step (Kounavis and Berry, "Novel table lookup-based algorithms for high-performance CRC"). */

const POLYNOMIAL = 0xedb88320;
const tables = Array.from({ length: 8 }, () => new Uint32Array(256));

for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (const table of tables) {
        for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? POLYNOMIAL ^ crc >>> 1 : crc >>> 1;
        table[byte] = crc;
    }
}

/** The checksum, unsigned, of what `before` is that of with `bytes` behind it. @param {Uint8Array} bytes @param {number} [before] */
export function crc32(bytes, before = 0) {
    const [t0, t1, t2, t3, t4, t5, t6, t7] = tables;
    let crc = ~before, i = 0;
    for (const end = bytes.length - 7; i < end; i += 8) {
        crc ^= bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 | bytes[i + 3] << 24;
        crc = t7[crc & 255] ^ t6[crc >>> 8 & 255] ^ t5[crc >>> 16 & 255] ^ t4[crc >>> 24]
            ^ t3[bytes[i + 4]] ^ t2[bytes[i + 5]] ^ t1[bytes[i + 6]] ^ t0[bytes[i + 7]];
    }
    for (; i < bytes.length; i++) crc = t0[(crc ^ bytes[i]) & 255] ^ crc >>> 8;
    return ~crc >>> 0;
}
