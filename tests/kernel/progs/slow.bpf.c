// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A packet that is in flight for some tenths of a second, and says when it came and when it left. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define LOOPS (1 << 23) /* the most that bpf_loop takes */
#define TIMES 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&seen, &which);

	if (value)
		*value += 1;
}

static long nothing(__u32 index __attribute__((unused)), void *sum)
{
	*(volatile __u32 *)sum += 1;
	return 0;
}

SEC("xdp")
int slow(struct xdp_md *ctx __attribute__((unused)))
{
	__u32 sum = 0;

	count(0);
	for (int i = 0; i < TIMES; i++)
		bpf_loop(LOOPS, nothing, &sum, 0);
	count(1);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
