/*
 * rdma-core's tools import this function under the private version of their release; a version script can give a symbol one version only.
 * Each further one is a jump to the function, which has the oldest.
 */
#if defined(__x86_64__)
#define JUMP(to) jmp to
	.intel_syntax noprefix
#elif defined(__aarch64__)
#define JUMP(to) b to
#else
#error "softefa's device library is for x86-64 and aarch64"
#endif

#define ALIAS(release)                                                                     \
	.globl	query_gid_type_##release;                                                  \
	.type	query_gid_type_##release, %function;                                       \
	.symver	query_gid_type_##release, ibv_query_gid_type@IBVERBS_PRIVATE_##release;    \
query_gid_type_##release:                                                                  \
	JUMP(softefa_query_gid_type);                                                      \
	.size	query_gid_type_##release, . - query_gid_type_##release

	.text
	.hidden	softefa_query_gid_type
	ALIAS(57)
	ALIAS(59)
	ALIAS(64)
	ALIAS(65)

	.section .note.GNU-stack, "", %progbits
