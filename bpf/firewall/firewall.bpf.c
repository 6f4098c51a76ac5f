// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Allows and denies by remote network, protocol and destination port (XDP and tc, IPv4 and IPv6, stateless).
 *
 * The remote address is the source of what comes in, and the destination of what goes out. The first line that says
 * something decides:
 *
 *   1. ARP, and IPv6 neighbour discovery on the link itself (hop limit 255): allowed, or no other frame gets anywhere.
 *   2. remote address in `deny_v4` or `deny_v6`: denied.
 *   3. remote address in `allow_v4` or `allow_v6`: allowed.
 *   4. `rules` for the zone of the remote address (`zones_v4`, `zones_v6`; longest prefix; zone 0 if none), then for
 *      zone 0, which is everybody: protocol and port, then protocol with port 0, then protocol 0 with port 0.
 *   5. with allow_established: TCP that opens no connection (ACK or RST): allowed.
 *   6. with allow_fragments: later fragments, which have no ports: allowed.
 *   7. default_verdict, also for frames that are not IP.
 *
 * Parse error: closed (drop), unless drop_malformed is false: then default_verdict. Map miss: the next line.
 */
#include <stdbool.h>

#include "chain.h"
#include "parse.h"

#define NEIGHBOUR_FIRST 133 /* ICMPv6 types of RFC 4861: router solicitation to redirect */
#define NEIGHBOUR_LAST 137
#define ON_LINK_HOP_LIMIT 255 /* RFC 4861 §11.2: no router has forwarded it */

enum verdict {
	DENY = 0,
	ALLOW = 1,
};

const volatile enum verdict default_verdict = DENY; /* when nothing else says something */
const volatile bool drop_malformed = true;	    /* what cannot be read is dropped */
const volatile bool allow_established = false;	    /* TCP with ACK or RST passes if no rule denies it */
const volatile bool allow_fragments = false;	    /* later fragments pass if no rule denies them */

/* Keys of the LPM maps. */
struct network_v4 {
	__u32 prefixlen; /* bits, host order */
	__u8 addr[4];	 /* network order */
};

struct network_v6 {
	__u32 prefixlen; /* bits, host order */
	__u8 addr[16];	 /* network order */
};

/* Key of `rules`: 0 in `protocol` or `port` means any; a port goes with a protocol. */
struct service {
	__u32 zone;	/* host order; 0: everybody */
	__u8 protocol;	/* IANA number: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6 */
	__u8 pad;	/* 0 */
	__be16 port;	/* destination port, network order */
};

#define NETWORKS(NAME, KEY)                           \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);  \
		__uint(max_entries, 65536);           \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, struct KEY);              \
		__type(value, __u32);                 \
	} NAME SEC(".maps")

/* config: remote networks. The value is not read: a number for people, say of a ticket. */
NETWORKS(deny_v4, network_v4);
NETWORKS(deny_v6, network_v6);
NETWORKS(allow_v4, network_v4);
NETWORKS(allow_v6, network_v6);

/* config: remote network -> zone, host order. */
NETWORKS(zones_v4, network_v4);
NETWORKS(zones_v6, network_v6);

/* config: zone, protocol and port -> verdict. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct service);
	__type(value, enum verdict);
} rules SEC(".maps");

/* What lines 2 to 4 need of the remote address. */
struct remote {
	__u32 zone;
	bool denied;
	bool allowed;
};

static __always_inline void find_v4(const __be32 *address, struct remote *remote)
{
	struct network_v4 key = {.prefixlen = 32};
	__u32 *zone;

	__builtin_memcpy(key.addr, &address[3], sizeof(key.addr));
	remote->denied = bpf_map_lookup_elem(&deny_v4, &key);
	if (remote->denied)
		return;
	remote->allowed = bpf_map_lookup_elem(&allow_v4, &key);
	if (remote->allowed)
		return;
	zone = bpf_map_lookup_elem(&zones_v4, &key);
	remote->zone = zone ? *zone : 0;
}

static __always_inline void find_v6(const __be32 *address, struct remote *remote)
{
	struct network_v6 key = {.prefixlen = 128};
	__u32 *zone;

	__builtin_memcpy(key.addr, address, sizeof(key.addr));
	remote->denied = bpf_map_lookup_elem(&deny_v6, &key);
	if (remote->denied)
		return;
	remote->allowed = bpf_map_lookup_elem(&allow_v6, &key);
	if (remote->allowed)
		return;
	zone = bpf_map_lookup_elem(&zones_v6, &key);
	remote->zone = zone ? *zone : 0;
}

/* The verdict of the most exact rule of one zone, or NULL. */
static __always_inline enum verdict *find_rule(__u32 zone, const struct packet *packet, bool has_port)
{
	struct service key = {.zone = zone, .protocol = packet->protocol, .port = packet->destination_port};
	enum verdict *verdict;

	if (has_port) {
		verdict = bpf_map_lookup_elem(&rules, &key);
		if (verdict)
			return verdict;
	}
	key.port = 0;
	verdict = bpf_map_lookup_elem(&rules, &key);
	if (verdict)
		return verdict;
	key.protocol = 0;
	return bpf_map_lookup_elem(&rules, &key);
}

static __always_inline bool is_neighbour_discovery(const struct packet *packet)
{
	return packet->family == 6 && packet->protocol == IPPROTO_ICMPV6 && packet->hop_limit == ON_LINK_HOP_LIMIT &&
	       packet->icmp_type >= NEIGHBOUR_FIRST && packet->icmp_type <= NEIGHBOUR_LAST;
}

static __always_inline enum verdict judge(enum parse_result result, const struct packet *packet, bool outgoing)
{
	const __be32 *address = outgoing ? packet->destination : packet->source;
	struct remote remote = {};
	enum verdict *verdict;

	switch (result) {
	case PARSE_OK:
	case PARSE_FRAGMENT:
		break;
	case PARSE_NOT_IP:
		return packet->ethertype == ETH_P_ARP ? ALLOW : default_verdict;
	default:
		return drop_malformed ? DENY : default_verdict;
	}
	if (result == PARSE_OK && is_neighbour_discovery(packet))
		return ALLOW;
	if (packet->family == 4)
		find_v4(address, &remote);
	else
		find_v6(address, &remote);
	if (remote.denied)
		return DENY;
	if (remote.allowed)
		return ALLOW;
	verdict = find_rule(remote.zone, packet, result == PARSE_OK);
	if (!verdict && remote.zone)
		verdict = find_rule(0, packet, result == PARSE_OK);
	if (verdict)
		return *verdict == ALLOW ? ALLOW : DENY;
	if (allow_established && packet->tcp_flags & (PARSE_TCP_ACK | PARSE_TCP_RST))
		return ALLOW;
	if (allow_fragments && result == PARSE_FRAGMENT)
		return ALLOW;
	return default_verdict;
}

SEC("xdp")
int firewall_xdp(struct xdp_md *ctx)
{
	struct packet packet = {};
	enum parse_result result;

	chain_enter(ctx);
	result = parse_xdp(ctx, &packet);
	return chain_return(ctx, judge(result, &packet, false) == ALLOW ? XDP_PASS : XDP_DROP);
}

SEC("tc")
int firewall_ingress(struct __sk_buff *ctx)
{
	struct packet packet = {};
	enum parse_result result;

	chain_enter(ctx);
	result = parse_tc(ctx, &packet);
	return chain_return(ctx, judge(result, &packet, false) == ALLOW ? TC_ACT_UNSPEC : TC_ACT_SHOT);
}

SEC("tc")
int firewall_egress(struct __sk_buff *ctx)
{
	struct packet packet = {};
	enum parse_result result;

	chain_enter(ctx);
	result = parse_tc(ctx, &packet);
	return chain_return(ctx, judge(result, &packet, true) == ALLOW ? TC_ACT_UNSPEC : TC_ACT_SHOT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
