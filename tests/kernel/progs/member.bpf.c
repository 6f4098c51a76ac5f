// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A member for tests of the kernel layer: one source, built for XDP (-DHOOK_XDP, -DHOOK_XDP_FRAGS) or tc.
 *
 * Follows the contract of packages: globals chain_*, `next`, `stats`. What it does with a packet is set by globals:
 * it writes `mark` at byte `mark_offset` of the frame (so a receiver sees which members ran, and in which generation),
 * drops UDP and TCP destination ports that are in `deny`, and otherwise returns `verdict`.
 * Open on parse errors: a frame it cannot parse gets `verdict`.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#if defined(HOOK_XDP_FRAGS)
#define SECTION "xdp.frags"
#elif defined(HOOK_XDP)
#define SECTION "xdp"
#else
#define SECTION "tc"
#endif

#if defined(HOOK_XDP) || defined(HOOK_XDP_FRAGS)
#define CTX struct xdp_md
#define PASS XDP_PASS
#define DROP XDP_DROP
#else
#define CTX struct __sk_buff
#define PASS -1 /* TCX_NEXT, TC_ACT_UNSPEC */
#define DROP TC_ACT_SHOT
#endif

#define SEEN 0
#define PASSED 1
#define DROPPED 2
#define BROKEN 5

volatile const __u32 chain_proceed = 0;
volatile const __u32 chain_last = 1;
volatile const __s32 chain_end = PASS;
volatile const __s32 chain_broken = DROP;

volatile const __s32 verdict = PASS;
volatile const __u32 mark_offset = 0xffff; /* bytes from the start of the frame; at most 63, else no mark */
volatile const __u8 mark = 0;

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct net {
	__u32 bits; /* prefix length, host byte order */
	__u8 addr[4]; /* network byte order */
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 6);
	__type(key, __u32);
	__type(value, struct counter);
} stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16); /* port, host byte order */
	__type(value, __u32);
} deny SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct net);
	__type(value, __u32);
} nets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} table SEC(".maps");

static __always_inline void count(CTX *ctx, __u32 index)
{
	struct counter *counter = bpf_map_lookup_elem(&stats, &index);

	if (counter) {
		counter->packets += 1;
		counter->bytes += ctx->data_end - ctx->data;
	}
}

static __always_inline int chain_return(CTX *ctx, __s32 result)
{
	__u32 bit = result < 0 ? 31 : (__u32)result & 31;

	if (!(chain_proceed & (1u << bit))) {
		count(ctx, result == DROP ? DROPPED : PASSED);
		return result;
	}
	count(ctx, PASSED);
	if (chain_last)
		return chain_end;
	bpf_tail_call(ctx, &next, 0);
	count(ctx, BROKEN);
	return chain_broken;
}

static __always_inline int denied(CTX *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__be16 *ports = (void *)(ip + 1);
	struct net key = {.bits = 32};
	__u16 port;
	__u32 zero = 0, *slot;

	if ((void *)(ports + 2) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return 0;
	port = bpf_ntohs(ports[1]);
	if (bpf_map_lookup_elem(&deny, &port))
		return 1;
	__builtin_memcpy(key.addr, &ip->saddr, 4);
	if (bpf_map_lookup_elem(&nets, &key))
		return 1;
	slot = bpf_map_lookup_elem(&table, &zero);
	return slot && *slot == port && port;
}

static __always_inline void write_mark(CTX *ctx)
{
	__u32 offset = mark_offset;

	if (offset > 63)
		return;
#if defined(HOOK_XDP) || defined(HOOK_XDP_FRAGS)
	__u8 *byte = (void *)(long)ctx->data + offset;

	if ((void *)(byte + 1) <= (void *)(long)ctx->data_end)
		*byte = mark;
#else
	__u8 value = mark;

	bpf_skb_store_bytes(ctx, offset, &value, 1, 0);
#endif
}

static __always_inline int handle(CTX *ctx)
{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	if (hit)
		__sync_fetch_and_add(hit, 1);
	count(ctx, SEEN);
	write_mark(ctx);
	return chain_return(ctx, denied(ctx) ? DROP : verdict);
}

SEC(SECTION)
int member(CTX *ctx)
{
	return handle(ctx);
}

#ifndef WITHOUT_BROKEN
/* The verifier rejects this one: it reads beyond the packet without a check. */
SEC(SECTION)
int broken(CTX *ctx)
{
	return handle(ctx) + *(__u8 *)(long)ctx->data;
}
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
