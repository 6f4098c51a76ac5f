// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The contract between a packet program and the chain it runs in (docs/packages.md).
 *
 * Include this once, call chain_enter(ctx) first, and leave only by `return chain_return(ctx, verdict)`. Both take a
 * struct xdp_md or a struct __sk_buff, so one source can hold XDP and tc programs. Section names: exactly "xdp",
 * "xdp.frags" or "tc".
 *
 * The globals are read-only and set before the load, so the verifier folds them. As compiled (chain_proceed 0) a
 * program stands alone: its own verdict is returned, as an XDP dispatcher expects too.
 */
#ifndef RECONCILER_CHAIN_H
#define RECONCILER_CHAIN_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

/* Bit v: verdict v goes on to the next member; bit 31: verdict -1 (TCX_NEXT, TC_ACT_UNSPEC). */
const volatile __u32 chain_proceed = 0;
/* Not 0: nothing follows, a verdict that would go on becomes chain_end. */
const volatile __u32 chain_last = 1;
/* Verdict at the end of the chain: XDP_PASS; on tc TC_ACT_UNSPEC or TC_ACT_OK. */
const volatile __s32 chain_end = 0;
/* Verdict when a successor exists and the tail call to it came back: drop, unless the chain says otherwise. */
const volatile __s32 chain_broken = 0;

/* Indexes of `stats`. Every frame counts once under SEEN and once under one of PASSED to ABORTED, by the member's own
 * verdict, whatever the members behind it decide; BROKEN counts besides, when the tail call came back. */
enum chain_stat {
	CHAIN_SEEN = 0,
	CHAIN_PASSED = 1,
	CHAIN_DROPPED = 2,
	CHAIN_REDIRECTED = 3, /* sent elsewhere: XDP_TX and XDP_REDIRECT; on tc redirect, stolen, queued, trap */
	CHAIN_ABORTED = 4,
	CHAIN_BROKEN = 5,
	CHAIN_STATS = 6,
};

/* One counter, host byte order. */
struct chain_counter {
	__u64 packets; /* frames (a GSO frame on tc counts as one) */
	__u64 bytes;   /* frame length at that moment, from the Ethernet header on */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CHAIN_STATS);
	__type(key, __u32);
	__type(value, struct chain_counter);
} stats SEC(".maps");

/* Slot 0 holds the next member; filled and frozen before the chain is switched on. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

/* A program runs to its end on one CPU, and each CPU has its own counters: plain additions lose nothing. */
static __always_inline void chain_count(__u32 stat, __u64 bytes)
{
	struct chain_counter *counter = bpf_map_lookup_elem(&stats, &stat);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += bytes;
}

static __always_inline __u64 chain_bytes_xdp(struct xdp_md *ctx)
{
#ifdef CHAIN_FRAGS /* define it in an object whose section is "xdp.frags" */
	return bpf_xdp_get_buff_len(ctx);
#else
	return ctx->data_end - ctx->data;
#endif
}

static __always_inline __u64 chain_bytes_tc(struct __sk_buff *ctx)
{
	return ctx->len;
}

static __always_inline __u32 chain_stat_xdp(int verdict)
{
	switch (verdict) {
	case XDP_PASS:
		return CHAIN_PASSED;
	case XDP_DROP:
		return CHAIN_DROPPED;
	case XDP_TX:
	case XDP_REDIRECT:
		return CHAIN_REDIRECTED;
	default: /* XDP_ABORTED, and what the kernel treats like it */
		return CHAIN_ABORTED;
	}
}

static __always_inline __u32 chain_stat_tc(int verdict)
{
	switch (verdict) {
	case TC_ACT_SHOT:
		return CHAIN_DROPPED;
	case TC_ACT_REDIRECT:
	case TC_ACT_STOLEN:
	case TC_ACT_QUEUED:
	case TC_ACT_TRAP:
		return CHAIN_REDIRECTED;
	default:
		return CHAIN_PASSED;
	}
}

/* Verdicts outside -1..30 have no bit and never go on. */
static __always_inline int chain_goes_on(int verdict)
{
	if (verdict < -1 || verdict > 30)
		return 0;
	return (chain_proceed >> ((__u32)verdict & 31)) & 1;
}

static __always_inline void chain_enter_xdp(struct xdp_md *ctx)
{
	chain_count(CHAIN_SEEN, chain_bytes_xdp(ctx));
}

static __always_inline void chain_enter_tc(struct __sk_buff *ctx)
{
	chain_count(CHAIN_SEEN, chain_bytes_tc(ctx));
}

static __always_inline int chain_return_xdp(struct xdp_md *ctx, int verdict)
{
	chain_count(chain_stat_xdp(verdict), chain_bytes_xdp(ctx));
	if (!chain_goes_on(verdict))
		return verdict;
	if (chain_last)
		return chain_end;
	bpf_tail_call(ctx, &next, 0);
	chain_count(CHAIN_BROKEN, chain_bytes_xdp(ctx));
	return chain_broken;
}

static __always_inline int chain_return_tc(struct __sk_buff *ctx, int verdict)
{
	chain_count(chain_stat_tc(verdict), chain_bytes_tc(ctx));
	if (!chain_goes_on(verdict))
		return verdict;
	if (chain_last)
		return chain_end;
	bpf_tail_call(ctx, &next, 0);
	chain_count(CHAIN_BROKEN, chain_bytes_tc(ctx));
	return chain_broken;
}

#define chain_enter(ctx) \
	_Generic((ctx), struct xdp_md *: chain_enter_xdp, struct __sk_buff *: chain_enter_tc)(ctx)

#define chain_return(ctx, verdict) \
	_Generic((ctx), struct xdp_md *: chain_return_xdp, struct __sk_buff *: chain_return_tc)(ctx, verdict)

#endif
