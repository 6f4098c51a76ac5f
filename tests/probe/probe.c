// SPDX-License-Identifier: Apache-2.0
/*
 * The packet probe of the tests: a paced stream of numbered, time-stamped packets of several kinds, and a receiver that
 * counts what arrives of each kind. Packets of kind 0, "pass", should arrive. Each further kind belongs to a member of the
 * chain under test that must drop it: one that arrives has escaped, and the receiver says which ones did, and when.
 *
 *   probe send --interface IF --dst-mac MAC --src-ip A --dst-ip B --rate PPS [--count N] [--seconds S] [--drop-every K]
 *   probe receive --interface IF | --udp [--count N] [--seconds S] [--list N]
 *   both: [--netns NAME] [--pass-port P] [--drop-ports Q[,Q...]]
 *
 * Every Kth packet is to be dropped; the kinds (one for each port of --drop-ports, numbered from 1) take turns. The sender
 * writes whole frames into a packet socket, so they go through tc egress but not through routing. It waits while the
 * interface is down, and looks for it again by its name when it is gone; its pace begins anew then. On SIGUSR1 it prints
 * one line of JSON at once: the number of the next packet, and the time. A receiver with --interface is a packet socket
 * too: it sees what XDP let through, but sits *before* tc ingress; with --udp it is UDP sockets behind everything. Both
 * print "ready" when packets are sent or will be counted, and one line of JSON at the end: after COUNT packets, after SECONDS,
 * or on SIGTERM or SIGINT, whichever comes first. All times are CLOCK_MONOTONIC in ns, the same clock on both sides. Exit:
 * 0; 1 with a message; 64 for wrong usage.
 *
 * Escaped packets are told as windows: packets of one kind of which none in between was dropped; at most --list of them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/sock_diag.h>
#include <linux/udp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x5250524F42453031ULL /* "RPROBE01" */
#define SECOND 1000000000ULL
#define BATCH 64	     /* frames that the receiver reads at once */
#define MIN_SLEEP 20000	     /* ns; shorter waits are spun */
#define RETRY_PAUSE 100000   /* ns */
#define RECEIVE_PAUSE 500000 /* ns; so much later than it was does the receiver say that a packet arrived */
#define MAX_COUNT 100000000ULL
#define MAX_SECONDS 1800
#define MAX_RATE 2000000
#define MAX_LIST 100000
#define MAX_KINDS 8
#define PASS 0 /* the kind; the others are to be dropped */
#define RECEIVE_BUFFER (128 << 20)

/* All numbers in network byte order. */
struct payload {
	uint64_t magic;
	uint64_t sequence; /* from 0, over all kinds */
	uint64_t sent;	   /* ns, CLOCK_MONOTONIC */
	uint32_t kind;
	uint32_t stride;   /* from one packet of this kind to the next; 0 for PASS, whose steps differ */
} __attribute__((packed));

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct payload payload;
} __attribute__((packed));

struct options {
	const char *interface, *netns, *dst_mac, *src_ip, *dst_ip;
	bool udp;
	uint64_t count, seconds, rate, drop_every, list;
	uint32_t kinds;
	uint16_t ports[MAX_KINDS]; /* by kind */
};

static volatile sig_atomic_t stopped, asked;

static void on_signal(int number)
{
	if (number == SIGUSR1)
		asked = 1;
	else
		stopped = 1;
}

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	exit(1);
}

static _Noreturn void usage(const char *what)
{
	fprintf(stderr, "probe: wrong usage: %s (the head of tests/probe/probe.c says how)\n", what);
	exit(64);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static void print_ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

static void sleep_until(uint64_t when)
{
	struct timespec time = {.tv_sec = when / SECOND, .tv_nsec = when % SECOND};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL); /* a signal ends it early, the caller looks */
}

static int packet_socket(const struct options *options, uint16_t protocol)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol)};
	int made = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* protocol 0: nothing comes in before bind */

	if (made < 0)
		fail("packet socket");
	address.sll_ifindex = if_nametoindex(options->interface);
	if (!address.sll_ifindex)
		fail(options->interface);
	if (bind(made, (struct sockaddr *)&address, sizeof(address)))
		fail("bind to the interface");
	return made;
}

/* === send ============================================================================================== */

static uint16_t ip_checksum(const uint8_t *bytes)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < sizeof(struct iphdr); i += 2)
		sum += bytes[i] << 8 | bytes[i + 1];
	while (sum >> 16)
		sum = (sum & 0xFFFF) + (sum >> 16);
	return htons(~sum & 0xFFFF);
}

static void fill_template(struct frame *frame, const struct options *options, const uint8_t *source_mac)
{
	unsigned int mac[6];

	if (sscanf(options->dst_mac, "%x:%x:%x:%x:%x:%x", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6)
		usage("--dst-mac");
	memset(frame, 0, sizeof(*frame));
	for (int i = 0; i < 6; i++)
		frame->ethernet.h_dest[i] = mac[i];
	memcpy(frame->ethernet.h_source, source_mac, 6);
	frame->ethernet.h_proto = htons(ETH_P_IP);
	frame->ip.version = 4;
	frame->ip.ihl = 5;
	frame->ip.tot_len = htons(sizeof(*frame) - sizeof(frame->ethernet));
	frame->ip.ttl = 64;
	frame->ip.protocol = IPPROTO_UDP;
	if (inet_pton(AF_INET, options->src_ip, &frame->ip.saddr) != 1)
		usage("--src-ip");
	if (inet_pton(AF_INET, options->dst_ip, &frame->ip.daddr) != 1)
		usage("--dst-ip");
	frame->ip.check = ip_checksum((const uint8_t *)frame + offsetof(struct frame, ip));
	frame->udp.source = htons(40000);
	frame->udp.len = htons(sizeof(frame->udp) + sizeof(frame->payload)); /* no UDP checksum: allowed over IPv4 */
	frame->payload.magic = htobe64(MAGIC);
}

static uint32_t kind_of(uint64_t sequence, const struct options *options)
{
	if (!options->drop_every || sequence % options->drop_every != options->drop_every - 1)
		return PASS;
	return 1 + sequence / options->drop_every % (options->kinds - 1);
}

static void number_frame(struct frame *frame, uint64_t sequence, const struct options *options)
{
	uint32_t kind = kind_of(sequence, options);

	frame->udp.dest = htons(options->ports[kind]);
	frame->payload.sequence = htobe64(sequence);
	frame->payload.kind = htonl(kind);
	frame->payload.stride = htonl(kind == PASS ? 0 : options->drop_every * (options->kinds - 1));
	frame->payload.sent = htobe64(now());
}

/* Sends one frame; false if it must be tried again because the interface takes nothing for a moment, or is gone. */
static bool send_one(int *socket_fd, const struct frame *frame, uint64_t *refused, const struct options *options)
{
	if (send(*socket_fd, frame, sizeof(*frame), 0) == sizeof(*frame))
		return true;
	if (errno == ENOBUFS) { /* dropped on its way out: the other end's queue is full, or a tc egress program did it */
		++*refused;
		return true;
	}
	if (errno == ENXIO || errno == ENODEV) {
		if (if_nametoindex(options->interface)) {
			close(*socket_fd);
			*socket_fd = packet_socket(options, 0);
		}
		return false;
	}
	if (errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
		fail("send");
	return false;
}

static void print_list(const char *name, const uint64_t *values, uint32_t count)
{
	printf("\"%s\": [", name);
	for (uint32_t i = 0; i < count; i++)
		printf("%s%" PRIu64, i ? ", " : "", values[i]);
	printf("], ");
}

/* What is counted while packets are sent. */
struct progress {
	uint64_t sent[MAX_KINDS], refused[MAX_KINDS];
	uint64_t sequence, retries;
	uint64_t base, since; /* the pace: packet `since` was due at `base` (ns) */
	uint64_t latest;      /* ns behind the pace, at worst */
};

static uint64_t due(const struct progress *progress, const struct options *options)
{
	return progress->base + (progress->sequence - progress->since) * 1000000 / options->rate * 1000;
}

static void send_next(int *socket_fd, struct frame *frame, struct progress *progress, const struct options *options)
{
	uint32_t kind = kind_of(progress->sequence, options);

	number_frame(frame, progress->sequence, options);
	if (send_one(socket_fd, frame, &progress->refused[kind], options)) {
		progress->sent[kind]++;
		progress->sequence++;
		return;
	}
	progress->retries++;
	sleep_until(now() + RETRY_PAUSE);
	progress->base = now(); /* what could not be sent meanwhile is not sent in one burst now */
	progress->since = progress->sequence;
}

static void print_mark(const struct progress *progress)
{
	asked = 0;
	printf("{\"sequence\": %" PRIu64 ", \"at_ns\": %" PRIu64 "}\n", progress->sequence, now());
	fflush(stdout);
}

static void send_all(const struct options *options)
{
	struct frame frame;
	struct sockaddr_ll own = {0};
	socklen_t length = sizeof(own);
	struct progress progress = {0};
	uint64_t start, end, at;
	int socket_fd = packet_socket(options, 0);

	if (getsockname(socket_fd, (struct sockaddr *)&own, &length))
		fail("getsockname");
	fill_template(&frame, options, own.sll_addr);
	print_ready();
	start = progress.base = now();
	end = start + options->seconds * SECOND;
	while (!stopped && progress.sequence < options->count && (at = now()) < end) {
		uint64_t when = due(&progress, options);

		if (asked)
			print_mark(&progress);
		if (at < when) {
			if (when - at > MIN_SLEEP)
				sleep_until(when);
			continue;
		}
		if (at - when > progress.latest)
			progress.latest = at - when;
		send_next(&socket_fd, &frame, &progress, options);
	}
	end = now();
	if (progress.sequence < options->count && end > due(&progress, options) + progress.latest)
		progress.latest = end - due(&progress, options); /* the next one was due already */
	close(socket_fd);
	printf("{");
	print_list("sent", progress.sent, options->kinds);
	print_list("refused", progress.refused, options->kinds);
	printf("\"start_ns\": %" PRIu64 ", \"end_ns\": %" PRIu64 ", \"retries\": %" PRIu64 ", \"latest_ns\": %" PRIu64 "}\n",
	       start, end, progress.retries, progress.latest);
}

/* === receive =========================================================================================== */

struct tally {
	uint64_t count, reordered, last; /* last: the highest sequence */
	uint64_t last_sent;		 /* ns */
	uint64_t gap, gap_start;	 /* ns: the longest time between the sending of two that arrived */
	struct window *window;		 /* to which the last one belongs, if it is listed */
};

/* Packets of one kind that should have been dropped and were not, and no other of that kind among them. */
struct window {
	uint64_t kind, count, first, last; /* sequences */
	uint64_t first_sent, last_sent;	   /* ns */
	uint64_t received;		   /* ns: when the last one was read, at most RECEIVE_PAUSE after it arrived */
};

static struct tally tallies[MAX_KINDS];
static struct window *windows;
static uint64_t window_count;

static void note_escape(struct tally *tally, const struct payload *payload, const struct options *options)
{
	uint64_t sequence = be64toh(payload->sequence), sent = be64toh(payload->sent);
	bool newer = !tally->count || sequence > tally->last, next = sequence == tally->last + ntohl(payload->stride);
	struct window *window = tally->window;

	if (newer && (!tally->count || !next)) {
		window = window_count < options->list ? &windows[window_count++] : NULL;
		tally->window = window;
		if (window)
			*window = (struct window){.kind = ntohl(payload->kind), .first = sequence, .first_sent = sent};
	}
	if (!window)
		return;
	window->count++;
	window->received = now();
	if (newer) {
		window->last = sequence;
		window->last_sent = sent;
	}
}

static void count_one(const struct payload *payload, const struct options *options)
{
	uint64_t sequence = be64toh(payload->sequence), sent = be64toh(payload->sent);
	uint32_t kind = ntohl(payload->kind);
	struct tally *tally;

	if (kind >= options->kinds)
		return;
	tally = &tallies[kind];
	if (kind != PASS)
		note_escape(tally, payload, options);
	if (tally->count++ && sequence <= tally->last) {
		tally->reordered++;
		return;
	}
	if (tally->count > 1 && sent - tally->last_sent > tally->gap) {
		tally->gap = sent - tally->last_sent;
		tally->gap_start = tally->last_sent;
	}
	tally->last = sequence;
	tally->last_sent = sent;
}

static void count_frame(const uint8_t *data, size_t length, const struct options *options)
{
	struct frame frame;
	struct payload payload;

	if (options->udp) {
		if (length != sizeof(payload))
			return;
		memcpy(&payload, data, sizeof(payload));
	} else {
		if (length != sizeof(frame))
			return;
		memcpy(&frame, data, sizeof(frame));
		if (frame.ethernet.h_proto != htons(ETH_P_IP) || frame.ip.protocol != IPPROTO_UDP)
			return;
		payload = frame.payload;
	}
	if (be64toh(payload.magic) == MAGIC)
		count_one(&payload, options);
}

/* Reads all that is there; false when nothing was. */
static bool drain(int socket_fd, const struct options *options)
{
	static uint8_t buffers[BATCH][256]; /* longer ones are cut, so they are not ours */
	static struct iovec vectors[BATCH];
	static struct mmsghdr messages[BATCH];
	int count;

	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = sizeof(buffers[i])};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	count = recvmmsg(socket_fd, messages, BATCH, MSG_DONTWAIT, NULL);
	if (count < 0 && errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
		fail("receive");
	for (int i = 0; i < count; i++)
		count_frame(buffers[i], messages[i].msg_len, options);
	return count > 0;
}

static void enlarge(int socket_fd)
{
	int size = RECEIVE_BUFFER;

	if (setsockopt(socket_fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		fail("SO_RCVBUFFORCE");
}

static int udp_socket(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int made = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (made < 0)
		fail("UDP socket");
	enlarge(made);
	if (bind(made, (struct sockaddr *)&address, sizeof(address)))
		fail("bind to the port");
	return made;
}

/* Packets that this socket itself lost for want of memory: a test must see 0 to trust the counts. */
static uint64_t lost(int socket_fd)
{
	uint32_t memory[SK_MEMINFO_VARS] = {0};
	socklen_t length = sizeof(memory);

	if (getsockopt(socket_fd, SOL_SOCKET, SO_MEMINFO, memory, &length))
		fail("SO_MEMINFO");
	return memory[SK_MEMINFO_DROPS];
}

static int open_sockets(struct pollfd *polled, const struct options *options)
{
	int one = 1, made;

	if (options->udp) {
		for (uint32_t i = 0; i < options->kinds; i++)
			polled[i] = (struct pollfd){.fd = udp_socket(options->ports[i]), .events = POLLIN};
		return options->kinds;
	}
	made = packet_socket(options, ETH_P_IP);
	enlarge(made);
	if (setsockopt(made, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)))
		fail("PACKET_IGNORE_OUTGOING");
	polled[0] = (struct pollfd){.fd = made, .events = POLLIN};
	return 1;
}

static void print_result(uint64_t start, uint64_t lost_packets, const struct options *options)
{
	uint64_t counts[MAX_KINDS], reordered = 0;

	for (uint32_t i = 0; i < options->kinds; i++) {
		counts[i] = tallies[i].count;
		reordered += tallies[i].reordered;
	}
	printf("{");
	print_list("received", counts, options->kinds);
	printf("\"start_ns\": %" PRIu64 ", \"end_ns\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"reordered\": %" PRIu64
	       ", \"gap_ns\": %" PRIu64 ", \"gap_start_ns\": %" PRIu64 ", \"windows\": [",
	       start, now(), lost_packets, reordered, tallies[PASS].gap, tallies[PASS].gap_start);
	for (uint64_t i = 0; i < window_count; i++) {
		const struct window *window = &windows[i];

		printf("%s[%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "]",
		       i ? ", " : "", window->kind, window->count, window->first, window->last, window->first_sent,
		       window->last_sent, window->received);
	}
	printf("]}\n");
}

static uint64_t received(const struct options *options)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < options->kinds; i++)
		sum += tallies[i].count;
	return sum;
}

static void receive_all(const struct options *options)
{
	struct pollfd polled[MAX_KINDS] = {0};
	uint64_t start, end, lost_packets = 0;
	int sockets = open_sockets(polled, options);
	bool more;

	windows = calloc(options->list + 1, sizeof(*windows));
	if (!windows)
		fail("memory");
	start = now();
	end = start + options->seconds * SECOND;
	print_ready();
	while (!stopped && received(options) < options->count && now() < end) {
		if (poll(polled, sockets, 50) > 0) {
			for (int i = 0; i < sockets; i++)
				while (!stopped && now() < end && drain(polled[i].fd, options))
					;
			sleep_until(now() + RECEIVE_PAUSE); /* or each packet wakes us, which slows the sender down */
		}
	}
	do { /* what had arrived before the signal counts */
		more = false;
		for (int i = 0; i < sockets; i++)
			more |= drain(polled[i].fd, options);
	} while (more && now() < end + SECOND);
	for (int i = 0; i < sockets; i++) {
		lost_packets += lost(polled[i].fd);
		close(polled[i].fd);
	}
	print_result(start, lost_packets, options);
	free(windows);
}

/* === command line ====================================================================================== */

static uint64_t number(const char *text, uint64_t low, uint64_t high, const char *what)
{
	char *rest;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &rest, 10);
	if (errno || rest == text || *rest || *text == '-' || value < low || value > high)
		usage(what);
	return value;
}

static void parse_drop_ports(char *text, struct options *options)
{
	options->kinds = 1;
	for (char *rest, *port = strtok_r(text, ",", &rest); port; port = strtok_r(NULL, ",", &rest)) {
		if (options->kinds == MAX_KINDS)
			usage("--drop-ports: too many");
		options->ports[options->kinds++] = number(port, 1, 65535, "--drop-ports");
	}
	if (options->kinds == 1)
		usage("--drop-ports: none");
}

static void parse_options(int count, char **arguments, struct options *options)
{
	static const struct option names[] = {
		{"interface", required_argument, NULL, 'i'}, {"netns", required_argument, NULL, 'n'},
		{"dst-mac", required_argument, NULL, 'm'},   {"src-ip", required_argument, NULL, 's'},
		{"dst-ip", required_argument, NULL, 'd'},    {"rate", required_argument, NULL, 'r'},
		{"count", required_argument, NULL, 'c'},     {"seconds", required_argument, NULL, 't'},
		{"drop-every", required_argument, NULL, 'e'}, {"pass-port", required_argument, NULL, 'p'},
		{"drop-ports", required_argument, NULL, 'q'}, {"list", required_argument, NULL, 'l'},
		{"udp", no_argument, NULL, 'u'},	      {0},
	};

	for (int name; (name = getopt_long(count, arguments, "", names, NULL)) != -1;) {
		switch (name) {
		case 'i': options->interface = optarg; break;
		case 'n': options->netns = optarg; break;
		case 'm': options->dst_mac = optarg; break;
		case 's': options->src_ip = optarg; break;
		case 'd': options->dst_ip = optarg; break;
		case 'u': options->udp = true; break;
		case 'r': options->rate = number(optarg, 1, MAX_RATE, "--rate"); break;
		case 'c': options->count = number(optarg, 1, MAX_COUNT, "--count"); break;
		case 't': options->seconds = number(optarg, 1, MAX_SECONDS, "--seconds"); break;
		case 'e': options->drop_every = number(optarg, 0, MAX_COUNT, "--drop-every"); break;
		case 'p': options->ports[PASS] = number(optarg, 1, 65535, "--pass-port"); break;
		case 'q': parse_drop_ports(optarg, options); break;
		case 'l': options->list = number(optarg, 0, MAX_LIST, "--list"); break;
		default: usage("unknown option");
		}
	}
	if (optind != count)
		usage("unexpected argument");
}

static void enter_netns(const char *name)
{
	char path[256];
	int descriptor;

	snprintf(path, sizeof(path), "/run/netns/%s", name);
	descriptor = open(path, O_RDONLY | O_CLOEXEC);
	if (descriptor < 0 || setns(descriptor, CLONE_NEWNET))
		fail(path);
	close(descriptor);
}

int main(int count, char **arguments)
{
	struct options options = {
		.count = MAX_COUNT, .seconds = 60, .rate = 10000, .drop_every = 2, .list = 100,
		.kinds = 2, .ports = {7001, 7002},
	};
	struct sigaction action = {.sa_handler = on_signal};
	bool sending;

	if (count < 2 || (strcmp(arguments[1], "send") && strcmp(arguments[1], "receive")))
		usage("expected send or receive");
	sending = !strcmp(arguments[1], "send");
	parse_options(count - 1, arguments + 1, &options);
	if (sending && (!options.interface || !options.dst_mac || !options.src_ip || !options.dst_ip))
		usage("send needs --interface, --dst-mac, --src-ip and --dst-ip");
	if (!sending && !options.interface == !options.udp)
		usage("receive needs either --interface or --udp");
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	if (sending)
		sigaction(SIGUSR1, &action, NULL);
	if (options.netns)
		enter_netns(options.netns);
	if (sending)
		send_all(&options);
	else
		receive_all(&options);
	return fflush(stdout) ? 1 : 0;
}
