/** The tokenizer of a package: text to ids, ids to text all at once or token by token, and chats to prompts. */
import { TokenizerError } from "./player/errors.js";
import { Tokenizer as Library } from "./vendor/tokenizers.js";

/**
 * @typedef {object} Settings what a package says beside its tokenizer.json
 * @property {number | null} [bos]
 * @property {number[]} [eos]
 * @property {boolean} [add_bos]
 * @property {string | null} [chat_template]
 * @property {string | null} [bos_token]
 * @property {string | null} [eos_token]
 *
 * @typedef {{ role: string, content: string }} Message
 */

const WHOLE = { skip_special_tokens: false, clean_up_tokenization_spaces: false };
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;
const LONE_SURROGATE = /\p{Surrogate}/u;

export class Tokenizer {
    /** @param {Uint8Array} json the bytes of a tokenizer.json @param {Settings} settings @throws {TokenizerError} */
    constructor(json, settings = {}) {
        let file;
        try {
            file = JSON.parse(new TextDecoder().decode(json));
            this.library = new Library(file, {});
        } catch (error) {
            throw new TokenizerError(`the tokenizer cannot be used: ${error.message}`);
        }
        this.bos = settings.bos ?? null;
        this.eos = [...settings.eos ?? []];
        this.chatTemplate = settings.chat_template ?? null;
        this.bosToken = settings.bos_token ?? "";
        this.eosToken = settings.eos_token ?? "";
        const prefix = this.library.encode("").ids;
        /** @type {number[]} */
        this.prefix = settings.add_bos && this.bos !== null && !prefix.length ? [this.bos] : [];    // else the tokenizer.json adds it by itself
        this.special = new Set([...this.library.get_added_tokens_decoder()].filter(([, token]) => token.special).map(([id]) => id));
        this.byteLevel = file.decoder?.type === "ByteLevel";
        this.anchor = this.library.encode("a", { add_special_tokens: false }).ids.slice(-1);
        this.anchorLength = this.anchor.length && this.library.decode(this.anchor, WHOLE).length;
        /** @type {Map<number, Uint8Array>} */
        this.pieces = new Map();
    }

    /**
     * Turn text into ids; special tokens are what the model wants around a text, such as bos.
     * @param {string} text
     * @param {{ addSpecialTokens?: boolean }} [options]
     * @returns {number[]}
     */
    encode(text, { addSpecialTokens = true } = {}) {
        if (typeof text !== "string" || LONE_SURROGATE.test(text)) throw new TokenizerError("the text cannot be encoded: it holds half a character");
        const { ids } = this.library.encode(text, { add_special_tokens: addSpecialTokens });
        return addSpecialTokens ? [...this.prefix, ...ids] : ids;
    }

    /** @param {Iterable<number>} ids @param {{ skipSpecialTokens?: boolean }} [options] @returns {string} */
    decode(ids, options) {
        const decoder = this.decoder(options);
        return Array.from(ids, id => decoder.push(id)).join("") + decoder.flush();
    }

    /** Start decoding token by token. @param {{ skipSpecialTokens?: boolean }} [options] */
    decoder({ skipSpecialTokens = true } = {}) {
        return new Decoder(this, skipSpecialTokens);
    }

    /**
     * Write messages as the prompt for the assistant's next turn; it holds bos already, so encode it without special tokens.
     * @param {Message[]} messages
     * @returns {Promise<string>}
     */
    async chat(messages) {
        if (this.chatTemplate === null) throw new TokenizerError("the model has no chat template; give it a plain prompt instead of messages");
        const { Template } = await import("./vendor/jinja.js");
        let template;
        try {
            template = new Template(this.chatTemplate);
        } catch (error) {
            throw new TokenizerError(`the chat template of the model is broken: ${error.message}`);
        }
        const values = { messages, tools: null, documents: null, add_generation_prompt: true, bos_token: this.bosToken, eos_token: this.eosToken };
        try {
            return template.render(values);
        } catch (error) {       // a template is the checkpoint's own program and may fail in any way
            throw new TokenizerError(`the chat template refuses these messages: ${error.message}`);
        }
    }

    /** @param {number} token @param {boolean} first in a text, which may lose the space before its word @returns {Uint8Array} the bytes it adds */
    piece(token, first) {
        if (first) return this.bytes(token, [], 0);
        let piece = this.pieces.get(token);
        if (!piece) this.pieces.set(token, piece = this.bytes(token, this.anchor, this.anchorLength));
        return piece;
    }

    /**
     * Decode a token behind others, so that it is not the first, and cut their text off.
     * @param {number} token
     * @param {number[]} before
     * @param {number} skip
     */
    bytes(token, before, skip) {
        const name = this.library.id_to_token(token);
        if (name === undefined) return new Uint8Array();
        if (this.byteLevel) return letterBytes(name) ?? new TextEncoder().encode(name);
        const text = this.library.decode([...before, token], WHOLE).slice(skip);
        return (text.includes("\ufffd") ? oneByte(name) ?? letterBytes(name) : undefined) ?? new TextEncoder().encode(text);
    }
}

/** Turns ids into text one by one and holds back the bytes of a character until it is complete. */
class Decoder {
    /** @param {Tokenizer} tokenizer @param {boolean} skip special tokens */
    constructor(tokenizer, skip) {
        this.tokenizer = tokenizer;
        this.skip = skip;
        this.first = true;
        this.utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    }

    /** @param {number} token @returns {string} */
    push(token) {
        if (this.skip && this.tokenizer.special.has(token)) return "";
        const piece = this.tokenizer.piece(token, this.first);
        this.first = false;
        return this.utf8.decode(piece, { stream: true });
    }

    /** End the text: a character that was never completed becomes a replacement character. @returns {string} */
    flush() {
        return this.utf8.decode();
    }
}

/** GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest for letters from U+0100 on. */
function byteAlphabet() {
    const printable = byte => (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
    let next = 0x100;
    return new Map(Array.from({ length: 256 }, (_, byte) => [String.fromCharCode(printable(byte) ? byte : next++), byte]));
}

const BYTE_ALPHABET = byteAlphabet();

/** The byte that <0x..> stands for. @param {string} token */
function oneByte(token) {
    const match = BYTE_TOKEN.exec(token);
    return match ? Uint8Array.of(Number.parseInt(match[1], 16)) : undefined;
}

/** The bytes that letters of the byte alphabet stand for; undefined where others are among them. @param {string} token */
function letterBytes(token) {
    const bytes = [...token].map(letter => BYTE_ALPHABET.get(letter));
    return bytes.includes(undefined) ? undefined : Uint8Array.from(/** @type {number[]} */ (bytes));
}
