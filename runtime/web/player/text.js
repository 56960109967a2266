/** The text of one sequence as its tokens come: whole characters only, cut at stop strings. */

/**
 * push(token) gives the text that is certain by now: incomplete characters, and what may begin a stop string, are held back.
 * `stopped` turns true at an end-of-text token or a stop string; flush() gives what was held back when no more tokens come.
 */
export class Text {
    /** @param {import("../tokenizer.js").Tokenizer | null} tokenizer @param {string | string[]} stops */
    constructor(tokenizer, stops) {
        this.stopped = false;
        this.decoder = tokenizer?.decoder();
        this.eos = new Set(tokenizer?.eos);
        this.stops = [stops].flat().filter(Boolean);
        this.held = "";
    }

    /** @param {number} token @returns {string} */
    push(token) {
        if (this.stopped = this.ends(token)) return this.flush();
        this.held += this.decoder?.push(token) ?? "";
        const found = this.stops.map(stop => this.held.indexOf(stop)).filter(at => at >= 0);
        this.stopped = found.length > 0;
        const cut = this.stopped ? Math.min(...found) : this.held.length - this.beginning(), piece = this.held.slice(0, cut);
        this.held = this.stopped ? "" : this.held.slice(cut);
        return piece;
    }

    /** The length of the longest end of the text that a stop string begins with. */
    beginning() {
        const beginnings = this.stops.flatMap(stop => Array.from({ length: stop.length }, (_, length) => stop.slice(0, length)));
        return Math.max(0, ...beginnings.filter(beginning => this.held.endsWith(beginning)).map(beginning => beginning.length));
    }

    /** @returns {string} */
    flush() {
        const piece = this.held + (this.decoder?.flush() ?? "");
        this.held = "";
        return piece;
    }

    /** Whether a token says that the text is over, rather than being part of it. @param {number} token */
    ends(token) {
        return this.eos.has(token);
    }
}
