// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Limits new TCP connections per second and destination port (XDP, IPv4 and IPv6).
 *
 * A new connection is a TCP segment with SYN and without ACK; a SYN that is sent again counts again. Each limited port
 * has one token bucket, shared by all CPUs under a lock. Ports that `ports` does not name are not limited.
 *
 * Parse error: closed (drop), unless drop_malformed is false. Not IP, not TCP, later fragment: open, they carry no SYN
 * (a first fragment without the whole TCP header is a parse error). Map miss in `ports`: open, by intent; in `buckets`:
 * cannot happen, closed.
 */
#include <stdbool.h>

#include "chain.h"
#include "parse.h"

/* The bucket counts in billionths of a connection, so that ns x connections/s needs no division and loses nothing. */
#define ONE_CONNECTION 1000000000ULL

/* Rates and bursts above these count as these: package.yaml has them as maxima, entries of `ports` are not checked. */
#define MAX_RATE 1000000U
#define MAX_BURST_MS 60000U

const volatile __u32 rate = 100;	   /* new connections per second and port, where `ports` gives 0 */
const volatile __u32 burst_ms = 1000;	   /* ms of unused rate that a port saves up, at least one connection */
const volatile bool drop_malformed = true; /* what cannot be read is dropped */

/* One bucket, all in host byte order, zero when never used. */
struct bucket {
	struct bpf_spin_lock lock;
	__u32 used;    /* not 0: the other members are valid */
	__u64 tokens;  /* billionths of a connection that may come now */
	__u64 updated; /* ns since boot (CLOCK_MONOTONIC) at which `tokens` was right */
};

/* config: destination port -> its connections per second, host order; 0: `rate`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be16);
	__type(value, __u32);
} ports SEC(".maps");

/* state: one bucket per port number (host order), so that none is ever missing or in the way of another. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

/* Billionths of a connection that a full bucket holds: at most 10^6 x 6 x 10^4 x 10^6 < 2^63. */
static __always_inline __u64 capacity_of(__u64 per_second)
{
	__u64 capacity = per_second * (burst_ms < MAX_BURST_MS ? burst_ms : MAX_BURST_MS) * (ONE_CONNECTION / 1000);

	return capacity < ONE_CONNECTION ? ONE_CONNECTION : capacity;
}

/* Takes one connection from the bucket if there is one; `now` in ns since boot. Two CPUs: the lock serialises them, and
 * a clock that was read before the other CPU's moves nothing back. No overflow: what is added is at most `missing`. */
static __always_inline bool take(struct bucket *bucket, __u64 now, __u64 per_second)
{
	__u64 capacity = capacity_of(per_second);
	__u64 missing, elapsed;
	bool taken = false;

	if (!per_second)
		return false;
	bpf_spin_lock(&bucket->lock);
	if (!bucket->used || bucket->tokens > capacity) {
		bucket->tokens = capacity;
		if (!bucket->used)
			bucket->updated = now;
		bucket->used = 1;
	}
	if (now > bucket->updated) {
		missing = capacity - bucket->tokens;
		elapsed = now - bucket->updated;
		if (elapsed > missing / per_second)
			bucket->tokens = capacity;
		else
			bucket->tokens += elapsed * per_second;
		bucket->updated = now;
	}
	if (bucket->tokens >= ONE_CONNECTION) {
		bucket->tokens -= ONE_CONNECTION;
		taken = true;
	}
	bpf_spin_unlock(&bucket->lock);
	return taken;
}

static __always_inline int judge(struct xdp_md *ctx)
{
	struct packet packet = {};
	struct bucket *bucket;
	__u32 *limit, port, per_second;

	switch (parse_xdp(ctx, &packet)) {
	case PARSE_OK:
		break;
	case PARSE_FRAGMENT:
	case PARSE_NOT_IP:
		return XDP_PASS;
	default:
		return drop_malformed ? XDP_DROP : XDP_PASS;
	}
	if (packet.protocol != IPPROTO_TCP || (packet.tcp_flags & (PARSE_TCP_SYN | PARSE_TCP_ACK)) != PARSE_TCP_SYN)
		return XDP_PASS;
	limit = bpf_map_lookup_elem(&ports, &packet.destination_port);
	if (!limit)
		return XDP_PASS;
	port = bpf_ntohs(packet.destination_port);
	bucket = bpf_map_lookup_elem(&buckets, &port);
	if (!bucket)
		return XDP_DROP;
	per_second = *limit ? *limit : rate;
	if (per_second > MAX_RATE)
		per_second = MAX_RATE;
	return take(bucket, bpf_ktime_get_ns(), per_second) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int ratelimit(struct xdp_md *ctx)
{
	chain_enter(ctx);
	return chain_return(ctx, judge(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
