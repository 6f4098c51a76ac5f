// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * From an Ethernet frame to addresses, protocol and ports; shared by the packet programs.
 *
 * Reads: up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with up to PARSE_MAX_EXTENSIONS extension
 * headers, TCP, UDP, UDP-Lite, SCTP, DCCP, ICMP and ICMPv6. Does not look into tunnels, and does not check checksums
 * or the length fields of IP (the kernel does; on tc a large GSO frame has its IPv4 length 0). Only for interfaces
 * whose frames start with an Ethernet header.
 */
#ifndef RECONCILER_PARSE_H
#define RECONCILER_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Outer and inner tag of 802.1ad; the kernel itself needs a VLAN device per tag. */
#define PARSE_MAX_TAGS 2
/* RFC 8200 names seven kinds, of which one may come twice; a longer walk is refused, not followed. */
#define PARSE_MAX_EXTENSIONS 8
/* What tc pulls into the linear part, at most, when the headers are not there: more than any header chain needs. */
#define PARSE_PULL_BYTES 4096U

#define PARSE_VLAN_8021Q 0x8100
#define PARSE_VLAN_8021AD 0x88A8
#define PARSE_FRAGMENT_OFFSET 0x1FFF /* IPv4, in units of 8 bytes, host order after bpf_ntohs */
#define PARSE_TCP_SYN 0x02
#define PARSE_TCP_RST 0x04
#define PARSE_TCP_ACK 0x10

enum parse_result {
	PARSE_OK,	/* all of struct packet is valid; a first fragment is read like a whole packet */
	PARSE_FRAGMENT, /* a later fragment: addresses and protocol are valid, there are no ports */
	PARSE_NOT_IP,	/* only ethertype is valid */
	PARSE_SHORT,	/* the frame ends inside a header that it announces */
	PARSE_BAD,	/* no sender makes this: wrong IP version or header length, too many tags or extension headers,
			 * a fragment that would overlap a TCP header (RFC 3128) */
};

/* What a frame says. Members that do not apply are 0. */
struct packet {
	__be32 source[4];      /* IPv6, or IPv4 as ::ffff:a.b.c.d, network order */
	__be32 destination[4]; /* likewise */
	__be16 source_port;    /* network order */
	__be16 destination_port;
	__u16 ethertype; /* behind the tags, host order */
	__u8 family;	 /* 4, 6, or 0 for neither */
	__u8 protocol;	 /* IANA number, behind the extension headers */
	__u8 tcp_flags;	 /* byte 13 of the TCP header: PARSE_TCP_... */
	__u8 icmp_type;	 /* ICMP and ICMPv6 */
	__u8 hop_limit;	 /* IPv6 hop limit, IPv4 time to live */
};

/* Byte 0 and 1 of each IPv6 extension header; `length` is in units that depend on the header. */
struct parse_extension {
	__u8 next;   /* IANA number of what follows */
	__u8 length; /* not counting the first 8 bytes, units of 8 bytes (AH: first 2 units, units of 4 bytes) */
};

/* RFC 8200 §4.5. */
struct parse_fragment {
	__u8 next;	/* IANA number of what follows */
	__u8 reserved;
	__be16 offset;	/* bits 3-15: offset in units of 8 bytes, bit 0: more follow; network order */
	__be32 identification;
};

/* The first bytes that TCP, UDP, UDP-Lite, SCTP and DCCP have in common. */
struct parse_ports {
	__be16 source;	    /* network order */
	__be16 destination; /* network order */
};

static __always_inline enum parse_result parse_transport(void *at, void *end, struct packet *packet)
{
	struct parse_ports *ports = at;
	struct tcphdr *tcp = at;
	__u8 *bytes = at;

	switch (packet->protocol) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > end)
			return PARSE_SHORT;
		packet->tcp_flags = bytes[13];
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		if (bytes + 8 > (__u8 *)end) /* the shortest of the four headers is UDP's */
			return PARSE_SHORT;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bytes + 4 > (__u8 *)end)
			return PARSE_SHORT;
		packet->icmp_type = bytes[0];
		return PARSE_OK;
	default:
		return PARSE_OK;
	}
	packet->source_port = ports->source;
	packet->destination_port = ports->destination;
	return PARSE_OK;
}

/* `offset` in units of 8 bytes, not 0. A TCP header is at least 20 bytes, and a first fragment without all of it is
 * refused, so no honest later fragment starts inside it. */
static __always_inline enum parse_result parse_later_fragment(__u16 offset, __u8 protocol)
{
	return protocol == IPPROTO_TCP && offset < 3 ? PARSE_BAD : PARSE_FRAGMENT;
}

static __always_inline enum parse_result parse_ipv4(void *at, void *end, struct packet *packet)
{
	struct iphdr *ip = at;
	__u16 offset;

	if ((void *)(ip + 1) > end)
		return PARSE_SHORT;
	if (ip->version != 4 || ip->ihl < 5)
		return PARSE_BAD;
	packet->family = 4;
	packet->source[2] = bpf_htonl(0xFFFF);
	packet->source[3] = ip->saddr;
	packet->destination[2] = bpf_htonl(0xFFFF);
	packet->destination[3] = ip->daddr;
	packet->protocol = ip->protocol;
	packet->hop_limit = ip->ttl;
	offset = bpf_ntohs(ip->frag_off) & PARSE_FRAGMENT_OFFSET;
	if (offset)
		return parse_later_fragment(offset, ip->protocol);
	return parse_transport(at + ip->ihl * 4, end, packet);
}

static __always_inline enum parse_result parse_ipv6(void *at, void *end, struct packet *packet)
{
	struct ipv6hdr *ip = at;
	struct parse_extension *extension;
	struct parse_fragment *fragment;
	__u8 protocol;
	__u16 offset;

	if ((void *)(ip + 1) > end)
		return PARSE_SHORT;
	if (ip->version != 6)
		return PARSE_BAD;
	packet->family = 6;
	__builtin_memcpy(packet->source, &ip->saddr, sizeof(packet->source));
	__builtin_memcpy(packet->destination, &ip->daddr, sizeof(packet->destination));
	packet->hop_limit = ip->hop_limit;
	protocol = ip->nexthdr;
	at += sizeof(*ip);

	for (int i = 0; i <= PARSE_MAX_EXTENSIONS; i++) {
		extension = at;
		switch (protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if ((void *)(extension + 1) > end)
				return PARSE_SHORT;
			protocol = extension->next;
			at += (extension->length + 1) * 8;
			break;
		case IPPROTO_AH:
			if ((void *)(extension + 1) > end)
				return PARSE_SHORT;
			protocol = extension->next;
			at += (extension->length + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			fragment = at;
			if ((void *)(fragment + 1) > end)
				return PARSE_SHORT;
			protocol = fragment->next;
			offset = bpf_ntohs(fragment->offset) >> 3;
			if (offset) {
				packet->protocol = protocol;
				return parse_later_fragment(offset, protocol);
			}
			at += sizeof(*fragment);
			break;
		default:
			packet->protocol = protocol;
			return parse_transport(at, end, packet);
		}
	}
	return PARSE_BAD;
}

/* `packet` must be all zero. */
static __always_inline enum parse_result parse_frame(void *at, void *end, struct packet *packet)
{
	struct ethhdr *ethernet = at;
	__be16 *tag;
	__u16 ethertype;

	if ((void *)(ethernet + 1) > end)
		return PARSE_SHORT;
	ethertype = bpf_ntohs(ethernet->h_proto);
	at += sizeof(*ethernet);
	for (int i = 0; i < PARSE_MAX_TAGS; i++) {
		if (ethertype != PARSE_VLAN_8021Q && ethertype != PARSE_VLAN_8021AD)
			break;
		tag = at; /* tag control information, then the type of what follows; both network order */
		if ((void *)(tag + 2) > end)
			return PARSE_SHORT;
		ethertype = bpf_ntohs(tag[1]);
		at += 4;
	}
	packet->ethertype = ethertype;
	switch (ethertype) {
	case ETH_P_IP:
		return parse_ipv4(at, end, packet);
	case ETH_P_IPV6:
		return parse_ipv6(at, end, packet);
	case PARSE_VLAN_8021Q:
	case PARSE_VLAN_8021AD:
		return PARSE_BAD;
	default:
		return PARSE_NOT_IP;
	}
}

static __always_inline enum parse_result parse_xdp(struct xdp_md *ctx, struct packet *packet)
{
	return parse_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, packet);
}

/* On tc the headers may lie outside the linear part: then they are pulled in, and read again. */
static __always_inline enum parse_result parse_tc(struct __sk_buff *ctx, struct packet *packet)
{
	enum parse_result result = PARSE_SHORT;

	for (int i = 0; i < 2; i++) {
		__builtin_memset(packet, 0, sizeof(*packet));
		result = parse_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, packet);
		if (result != PARSE_SHORT || ctx->data_end - ctx->data >= ctx->len)
			break;
		if (bpf_skb_pull_data(ctx, ctx->len < PARSE_PULL_BYTES ? ctx->len : PARSE_PULL_BYTES))
			break;
	}
	return result;
}

#endif
