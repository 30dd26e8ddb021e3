// The last minutes, as far as the server or this page has seen them.

export const keyOf = (model, tier) => JSON.stringify([model, tier]);

export class History {
  constructor() {
    this.room = 300;
    this.tokens = new Map();
    this.kv = new Map();
    this.busy = [];
    this.before = null;
  }

  // Takes over what the server remembers.
  load(document) {
    this.tokens = new Map(document.output_tokens_per_s.map(
      (each) => [keyOf(each.model, each.tier), each.points]));
    this.kv = new Map(document.kv_shares.map((each) => [each.model, each.points]));
    this.busy = document.busy_share;
    this.before = null;
  }

  // A status that came after the last one.
  add(status) {
    const passed = this.before ? status.uptime_s - this.before.uptime_s : 0;
    const tokens = new Map(status.tiers.map((tier) => [keyOf(tier.model, tier.tier), tier.output_tokens]));
    if (passed > 0) {
      const length = this.busy.length;
      for (const [key, total] of tokens) {
        const gained = Math.max(0, total - (this.before.tokens.get(key) ?? total));
        this.push(this.tokens, key, length, gained / passed);
      }
      for (const model of status.models) {
        this.push(this.kv, model.name, length,
          model.kv_total_bytes ? model.kv_used_bytes / model.kv_total_bytes : 0);
      }
      this.busy.push(status.host.busy_share);
      if (this.busy.length > this.room) this.busy.shift();
    }
    this.before = { uptime_s: status.uptime_s, tokens };
  }

  push(series, key, length, value) {
    const points = series.get(key) ?? new Array(length).fill(0);
    points.push(value);
    if (points.length > this.room) points.shift();
    series.set(key, points);
  }

  tokensOf(model, tier) {
    return this.tokens.get(keyOf(model, tier)) ?? this.busy.map(() => 0);
  }

  get allTokens() {
    const series = [...this.tokens.values()];
    return this.busy.map((_, place) => series.reduce((sum, points) => sum + (points[place] ?? 0), 0));
  }
}
