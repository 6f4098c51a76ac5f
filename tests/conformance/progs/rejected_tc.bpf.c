// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The verifier rejects this one: it reads beyond the packet without a check. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int member(struct __sk_buff *ctx)
{
	return *(__u8 *)(long)ctx->data;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
