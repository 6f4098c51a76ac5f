// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts packets and bytes per flow (tc, both directions, IPv4 and IPv6). Never drops and never changes a frame.
 *
 * A flow is addresses, protocol and ports, in one direction; the least recently used ones make room. Parse error, not
 * IP: open, not counted in `flows`. Later fragment: counted under ports 0. Map miss: a new flow; no memory for it:
 * open, not counted. `stats` counts every frame.
 */
#include <stdbool.h>

#include "chain.h"
#include "parse.h"

const volatile bool by_port = true; /* false: ports are 0 in all keys, so flows are pairs of hosts and a protocol */

/* Key of `flows`. */
struct flow {
	__u8 source[16];      /* IPv6, or IPv4 as ::ffff:a.b.c.d, network order */
	__u8 destination[16]; /* likewise */
	__be16 source_port;   /* network order; 0 for protocols without ports, and for later fragments */
	__be16 destination_port;
	__u8 protocol;	      /* IANA number, behind the IPv6 extension headers */
	__u8 pad[3];	      /* 0 */
};

/* Value of `flows`, host order. */
struct flow_count {
	__u64 packets;	  /* on the wire: the segments of a GSO frame count one each */
	__u64 bytes;	  /* frame lengths from the Ethernet header on; headers of a GSO frame count once */
	__u64 first_seen; /* ns since boot (CLOCK_MONOTONIC) */
	__u64 last_seen;  /* likewise */
};

/* state */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct flow_count);
} flows SEC(".maps");

static __always_inline void count(struct __sk_buff *ctx)
{
	struct packet packet = {};
	struct flow flow = {};
	struct flow_count fresh = {};
	struct flow_count *counted;
	enum parse_result result = parse_tc(ctx, &packet);

	if (result != PARSE_OK && result != PARSE_FRAGMENT)
		return;
	__builtin_memcpy(flow.source, packet.source, sizeof(flow.source));
	__builtin_memcpy(flow.destination, packet.destination, sizeof(flow.destination));
	flow.protocol = packet.protocol;
	if (by_port) {
		flow.source_port = packet.source_port;
		flow.destination_port = packet.destination_port;
	}
	counted = bpf_map_lookup_elem(&flows, &flow);
	if (!counted) {
		/* Another CPU may be making the same flow: then its entry is the one, and both add to it. */
		fresh.first_seen = bpf_ktime_get_ns();
		bpf_map_update_elem(&flows, &flow, &fresh, BPF_NOEXIST);
		counted = bpf_map_lookup_elem(&flows, &flow);
		if (!counted)
			return;
	}
	__sync_fetch_and_add(&counted->packets, ctx->gso_segs ? ctx->gso_segs : 1);
	__sync_fetch_and_add(&counted->bytes, ctx->len);
	counted->last_seen = bpf_ktime_get_ns();
}

SEC("tc")
int flowcount(struct __sk_buff *ctx)
{
	chain_enter(ctx);
	count(ctx);
	return chain_return(ctx, TC_ACT_UNSPEC);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
