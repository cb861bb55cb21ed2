/* Does plain libfabric calls as it is told: one command a line on stdin, key=value lines on stdout.
 *
 * A test drives several of these, on one emulated node each, and so sees what libfabric's own `efa` provider makes of
 * what the device does. A rail is one NIC's domain with one endpoint. Commands and their keys (numbers may be hex):
 *
 *   info   [fabric]                                                    item lines, one a domain
 *   open   rail nic|domain fabric [eq dc cq tx tagged unsolicited rx_cq_data rnr_retry shm]
 *   name   rail                                                        the endpoint's address, hex
 *   av     rail addr            av_remove rail peer
 *   buffer buf len [seed]       fill buf seed [off len]                verify buf seed [off len from]
 *   mr     rail buf [len]       mr_close rail buf
 *   post   op rail ctx buf off len peer [raddr rkey data tag count stride dc inject ms]
 *          op: write writedata read send senddata recv tsend trecv
 *   poll   rail want ms         comp and error lines; rail=-1: all rails
 *   eq     rail ms              eq_event and eq_error lines
 *   stream op rails buf len count window peer raddr rkey ms            moves count x len bytes over rails 0..rails
 *   idle   progress             whether completion queues are read while no command runs
 *   close  rail                 quit
 *
 * Each answer ends with one line: `done ...` or `fail what=... rc=... text=...`. A pattern's byte depends on the seed
 * and on its position, so that what lands in the wrong place, or is stale, cannot pass. Nothing that a peer or a script says ends
 * the program, and every wait has a deadline; only libfabric itself may abort it.
 *
 * Compiles with the headers of libfabric 1.17 and newer, runs on any libfabric.so.1.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <rdma/fi_tagged.h>

enum {
    RAILS_MAX = 64,
    BUFFERS_MAX = 64,
    ARGS_MAX = 32,
    LINE_MAX_BYTES = 8192,
    OPS_MAX = 8192,     /* contexts of one rail: no more operations are in flight on it */
    BACKLOG_MAX = 8192, /* completions that were read and not yet asked for */
    READ_AT_ONCE = 64,
    NAME_MAX_BYTES = 256,
    IDLE_NS = 200 * 1000,
    /* Names that headers of 1.17 lack; the numbers are the library's ABI. */
    OPT_SHARED_MEMORY_PERMITTED = 11,
    OPT_MAX_MSG_SIZE = 12,
    OPT_MAX_RMA_SIZE = 14,
    OPT_EFA_BASE = -(0xefa << 16),
    OPT_EFA_RNR_RETRY = OPT_EFA_BASE,
    OPT_EFA_EMULATED_READ = OPT_EFA_BASE + 1,
    OPT_EFA_EMULATED_WRITE = OPT_EFA_BASE + 2,
    OPT_EFA_USE_UNSOLICITED = OPT_EFA_BASE + 8,
};
#define REMOTE_ACCESS (FI_READ | FI_WRITE | FI_SEND | FI_RECV | FI_REMOTE_READ | FI_REMOTE_WRITE)
#define DEFAULT_WAIT_MS 5000

/* The provider keeps its own words in `room`; the address of an op is its libfabric context. */
struct op {
    struct fi_context2 room;
    uint64_t id;
    int busy;
};

struct outcome {
    uint64_t id, flags, data;
    size_t len;
    int known, err, prov_errno;
    char text[200];
};

struct rail {
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_eq *eq;
    struct fid_cq *cq;
    struct fid_av *av;
    struct fid_ep *ep;
    struct fid_mr *mrs[BUFFERS_MAX];
    uint64_t op_flags;
    struct op *ops;
    size_t next_op;
    struct outcome *backlog;
    size_t first, held, lost;
    int queue_gone;
};

struct buffer {
    uint8_t *at;
    size_t len;
};

static struct rail rails[RAILS_MAX];
static struct buffer buffers[BUFFERS_MAX];
static int idle_progress = 1;

static struct {
    char *key, *value;
} args[ARGS_MAX];
static int arg_count;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void breathe(void) {
    struct timespec t = {0, 20 * 1000};
    nanosleep(&t, NULL);
}

/* ---- what the command line says, and what is said back ---- */

static const char *word(const char *key, const char *otherwise) {
    for (int at = 0; at < arg_count; at++)
        if (!strcmp(args[at].key, key)) return args[at].value;
    return otherwise;
}

static int given(const char *key) { return word(key, NULL) != NULL; }

static uint64_t number(const char *key, uint64_t otherwise) {
    const char *text = word(key, NULL);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

static int fail(const char *what, ssize_t rc, const char *text) {
    printf("fail what=%s rc=%zd text=%s\n", what, rc, text ? text : fi_strerror((int)(rc < 0 ? -rc : rc)));
    return 0;
}

static int wrong(const char *text) { return fail("arguments", -FI_EINVAL, text); }

static struct rail *rail_named(const char *key) {
    uint64_t at = number(key, 0);
    return at < RAILS_MAX && rails[at].ep ? &rails[at] : NULL;
}

static struct buffer *buffer_named(void) {
    uint64_t at = number("buf", 0);
    return at < BUFFERS_MAX && buffers[at].at ? &buffers[at] : NULL;
}

/* ---- patterns ---- */

static uint8_t pattern(uint64_t seed, uint64_t position) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + (position >> 3) * 0xd1342543de82ef95u + 1;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 29)) * 0x94d049bb133111ebu;
    x ^= x >> 32;
    return (uint8_t)(x >> ((position & 7) * 8));
}

/* The part of a buffer that `off` and `len` name; 0 when it is not inside. */
static int part(const struct buffer *b, uint64_t *off, uint64_t *len) {
    *off = number("off", 0);
    *len = number("len", *off <= b->len ? b->len - *off : 0);
    return *off <= b->len && *len <= b->len - *off;
}

static int do_buffer(void) {
    uint64_t at = number("buf", 0), len = number("len", 0);
    if (at >= BUFFERS_MAX || !len || len > (1ull << 34)) return wrong("buf or len is out of range");
    if (buffers[at].at) return wrong("this buffer exists");
    void *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return fail("mmap", -errno, NULL);
    buffers[at] = (struct buffer){memory, len};
    if (given("seed"))
        for (uint64_t i = 0; i < len; i++) buffers[at].at[i] = pattern(number("seed", 0), i);
    printf("done addr=%p len=%" PRIu64 "\n", memory, len);
    return 0;
}

static int do_fill(void) {
    struct buffer *b = buffer_named();
    uint64_t off, len, seed = number("seed", 0);
    if (!b || !part(b, &off, &len)) return wrong("no such part of a buffer");
    for (uint64_t i = off; i < off + len; i++) b->at[i] = pattern(seed, i);
    puts("done");
    return 0;
}

static int do_verify(void) {
    struct buffer *b = buffer_named();
    uint64_t off, len, seed = number("seed", 0);
    if (!b || !part(b, &off, &len)) return wrong("no such part of a buffer");
    uint64_t from = number("from", off), differ = 0, first = 0;
    for (uint64_t i = 0; i < len; i++)
        if (b->at[off + i] != pattern(seed, from + i) && !differ++) first = off + i;
    printf("done same=%d differ=%" PRIu64 " first=%" PRIu64 "\n", !differ, differ, first);
    return 0;
}

/* ---- rails ---- */

static int option(struct rail *r, int name, uint64_t *value, size_t bytes) {
    *value = 0;
    return fi_getopt(&r->ep->fid, FI_OPT_ENDPOINT, name, value, &bytes);
}

static void close_fid(struct fid *fid) {
    int rc = fid ? fi_close(fid) : 0;
    if (rc) printf("note what=fi_close rc=%d text=%s\n", rc, fi_strerror(-rc));
}

static void close_rail(struct rail *r) {
    for (int at = 0; at < BUFFERS_MAX; at++)
        if (r->mrs[at]) close_fid(&r->mrs[at]->fid);
    if (r->ep) close_fid(&r->ep->fid);
    if (r->cq) close_fid(&r->cq->fid);
    if (r->av) close_fid(&r->av->fid);
    if (r->eq) close_fid(&r->eq->fid);
    if (r->domain) close_fid(&r->domain->fid);
    if (r->fabric) close_fid(&r->fabric->fid);
    if (r->info) fi_freeinfo(r->info);
    free(r->ops);
    free(r->backlog);
    memset(r, 0, sizeof *r);
}

static int find_info(uint64_t nic, struct fi_info **found, struct fi_info **all) {
    struct fi_info *hints = fi_allocinfo();
    if (!hints) return -FI_ENOMEM;
    hints->caps = FI_MSG | FI_RMA | (number("tagged", 0) ? FI_TAGGED : 0);
    hints->mode = FI_CONTEXT | FI_CONTEXT2 | (number("rx_cq_data", 0) ? FI_RX_CQ_DATA : 0);
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->fabric_attr->prov_name = strdup("efa");
    if (given("fabric")) hints->fabric_attr->name = strdup(word("fabric", ""));
    if (given("domain")) hints->domain_attr->name = strdup(word("domain", ""));
    if (given("tx")) hints->tx_attr->size = number("tx", 0);
    /* 1.18: from there on the provider uses RDMA on every device that has it. */
    int rc = fi_getinfo(FI_VERSION(1, 18), NULL, NULL, 0, hints, all);
    fi_freeinfo(hints);
    if (rc) return rc;
    *found = *all;
    while (*found && nic--) *found = (*found)->next;
    return *found ? 0 : -FI_ENODATA;
}

static int do_info(void) {
    struct fi_info *all = NULL, *first = NULL;
    int rc = find_info(0, &first, &all), count = 0;
    if (rc) return fail("fi_getinfo", rc, NULL);
    for (struct fi_info *i = all; i; i = i->next, count++) {
        struct fid_nic *nic = i->nic;
        printf("item fabric=%s domain=%s", i->fabric_attr->name, i->domain_attr->name);
        if (nic && nic->link_attr) printf(" bits_per_s=%zu mtu=%zu", nic->link_attr->speed, nic->link_attr->mtu);
        if (nic && nic->bus_attr && nic->bus_attr->bus_type == FI_BUS_PCI) {
            struct fi_pci_attr *pci = &nic->bus_attr->attr.pci;
            printf(" pci=%04x:%02x:%02x.%x", pci->domain_id, pci->bus_id, pci->device_id, pci->function_id);
        }
        printf("\n");
    }
    uint32_t v = fi_version();
    printf("done items=%d library=%u.%u\n", count, FI_MAJOR(v), FI_MINOR(v));
    fi_freeinfo(all);
    return 0;
}

static int open_rail(struct rail *r, const char **what) {
    struct fi_info *all = NULL, *found = NULL;
    *what = "fi_getinfo";
    int rc = find_info(given("domain") ? 0 : number("nic", 0), &found, &all);
    if (!rc) r->info = fi_dupinfo(found);
    if (all) fi_freeinfo(all);
    if (rc) return rc;
    r->ops = calloc(OPS_MAX, sizeof *r->ops);
    r->backlog = calloc(BACKLOG_MAX, sizeof *r->backlog);
    if (!r->info || !r->ops || !r->backlog) return -FI_ENOMEM;
    if (number("dc", 0)) r->op_flags = FI_DELIVERY_COMPLETE;

    *what = "fi_fabric";
    if ((rc = fi_fabric(r->info->fabric_attr, &r->fabric, NULL))) return rc;
    *what = "fi_domain";
    if ((rc = fi_domain(r->fabric, r->info, &r->domain, NULL))) return rc;
    if (number("eq", 1)) {
        struct fi_eq_attr attr = {.wait_obj = FI_WAIT_UNSPEC};
        *what = "fi_eq_open";
        if ((rc = fi_eq_open(r->fabric, &attr, &r->eq, NULL))) return rc;
    }
    struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_DATA, .size = number("cq", 0)};
    *what = "fi_cq_open";
    if ((rc = fi_cq_open(r->domain, &cq, &r->cq, NULL))) return rc;
    struct fi_av_attr av = {.type = FI_AV_TABLE};
    *what = "fi_av_open";
    if ((rc = fi_av_open(r->domain, &av, &r->av, NULL))) return rc;
    *what = "fi_endpoint";
    if ((rc = fi_endpoint(r->domain, r->info, &r->ep, NULL))) return rc;
    *what = "fi_ep_bind";
    if ((rc = fi_ep_bind(r->ep, &r->cq->fid, FI_TRANSMIT | FI_RECV))) return rc;
    if ((rc = fi_ep_bind(r->ep, &r->av->fid, 0))) return rc;
    if (r->eq && (rc = fi_ep_bind(r->ep, &r->eq->fid, 0))) return rc;
    /* Two emulated nodes never share memory, and neither shall two processes on one: the NIC is what is looked at. */
    bool shm = number("shm", 0), unsolicited = number("unsolicited", 0);
    *what = "fi_setopt:shared_memory_permitted";
    rc = fi_setopt(&r->ep->fid, FI_OPT_ENDPOINT, OPT_SHARED_MEMORY_PERMITTED, &shm, sizeof shm);
    if (rc && rc != -FI_ENOPROTOOPT && rc != -FI_EOPNOTSUPP) return rc;
    *what = "fi_setopt:unsolicited";
    if (given("unsolicited") &&
        (rc = fi_setopt(&r->ep->fid, FI_OPT_ENDPOINT, OPT_EFA_USE_UNSOLICITED, &unsolicited, sizeof unsolicited)))
        return rc;
    size_t retry = number("rnr_retry", 0);
    *what = "fi_setopt:rnr_retry";
    if (given("rnr_retry") && (rc = fi_setopt(&r->ep->fid, FI_OPT_ENDPOINT, OPT_EFA_RNR_RETRY, &retry, sizeof retry)))
        return rc;
    *what = "fi_enable";
    return fi_enable(r->ep);
}

static int do_open(void) {
    uint64_t at = number("rail", 0);
    if (at >= RAILS_MAX || rails[at].ep) return wrong("this rail is open, or out of range");
    struct rail *r = &rails[at];
    const char *what = "";
    int rc = open_rail(r, &what);
    if (rc) {
        close_rail(r);
        return fail(what, rc, NULL);
    }
    uint64_t msg, rma, emulated_read, emulated_write;
    option(r, OPT_MAX_MSG_SIZE, &msg, sizeof(size_t));
    option(r, OPT_MAX_RMA_SIZE, &rma, sizeof(size_t));
    int read_rc = option(r, OPT_EFA_EMULATED_READ, &emulated_read, sizeof(bool));
    int write_rc = option(r, OPT_EFA_EMULATED_WRITE, &emulated_write, sizeof(bool));
    struct fi_info *i = r->info;
    printf("done domain=%s fabric=%s max_msg=%" PRIu64 " max_rma=%" PRIu64 " tx=%zu rx=%zu inject=%zu cq_data=%zu"
           " mr_mode=0x%x emulated_read=%d emulated_write=%d\n",
           i->domain_attr->name, i->fabric_attr->name, msg, rma, i->tx_attr->size, i->rx_attr->size,
           i->tx_attr->inject_size, i->domain_attr->cq_data_size, (unsigned)i->domain_attr->mr_mode,
           read_rc ? -1 : (int)emulated_read, write_rc ? -1 : (int)emulated_write);
    return 0;
}

static int do_close(void) {
    struct rail *r = rail_named("rail");
    if (!r) return wrong("no such rail");
    close_rail(r);
    puts("done");
    return 0;
}

static int do_name(void) {
    struct rail *r = rail_named("rail");
    uint8_t name[NAME_MAX_BYTES];
    size_t len = sizeof name;
    if (!r) return wrong("no such rail");
    int rc = fi_getname(&r->ep->fid, name, &len);
    if (rc) return fail("fi_getname", rc, NULL);
    printf("done addr=");
    for (size_t at = 0; at < len; at++) printf("%02x", name[at]);
    printf("\n");
    return 0;
}

static int do_av(void) {
    struct rail *r = rail_named("rail");
    const char *hex = word("addr", "");
    uint8_t name[NAME_MAX_BYTES] = {0};
    size_t digits = strlen(hex);
    if (!r) return wrong("no such rail");
    if (!digits || digits % 2 || digits / 2 > sizeof name || strspn(hex, "0123456789abcdefABCDEF") != digits)
        return wrong("addr is not an address in hex");
    for (size_t at = 0; at < digits / 2; at++) {
        char byte[3] = {hex[2 * at], hex[2 * at + 1], 0};
        name[at] = (uint8_t)strtoul(byte, NULL, 16);
    }
    fi_addr_t peer = FI_ADDR_UNSPEC;
    int rc = fi_av_insert(r->av, name, 1, &peer, 0, NULL);
    if (rc != 1) return fail("fi_av_insert", rc < 0 ? rc : -FI_EINVAL, NULL);
    printf("done peer=%" PRIu64 "\n", (uint64_t)peer);
    return 0;
}

static int do_av_remove(void) {
    struct rail *r = rail_named("rail");
    fi_addr_t peer = number("peer", 0);
    if (!r) return wrong("no such rail");
    int rc = fi_av_remove(r->av, &peer, 1, 0);
    if (rc) return fail("fi_av_remove", rc, NULL);
    puts("done");
    return 0;
}

static int do_mr(void) {
    struct rail *r = rail_named("rail");
    struct buffer *b = buffer_named();
    if (!r || !b) return wrong("no such rail or buffer");
    struct fid_mr **mr = &r->mrs[b - buffers];
    if (*mr) return wrong("this buffer is registered on this rail");
    uint64_t off, len;
    if (!part(b, &off, &len)) return wrong("no such part of a buffer");
    int rc = fi_mr_reg(r->domain, b->at + off, len, REMOTE_ACCESS, 0, 0, 0, mr, NULL);
    if (rc) {
        *mr = NULL;
        return fail("fi_mr_reg", rc, NULL);
    }
    uint64_t base = r->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? (uintptr_t)b->at : 0;
    printf("done key=0x%" PRIx64 " base=0x%" PRIx64 "\n", fi_mr_key(*mr), base);
    return 0;
}

static int do_mr_close(void) {
    struct rail *r = rail_named("rail");
    struct buffer *b = buffer_named();
    if (!r || !b || !r->mrs[b - buffers]) return wrong("no such registration");
    int rc = fi_close(&r->mrs[b - buffers]->fid);
    r->mrs[b - buffers] = NULL;
    if (rc) return fail("fi_close", rc, NULL);
    puts("done");
    return 0;
}

/* ---- completions ---- */

static struct outcome *keep(struct rail *r) {
    if (r->held == BACKLOG_MAX) {
        r->lost++;
        return NULL;
    }
    struct outcome *o = &r->backlog[(r->first + r->held++) % BACKLOG_MAX];
    memset(o, 0, sizeof *o);
    return o;
}

static uint64_t settle(struct rail *r, void *context, int *known) {
    struct op *op = context;
    *known = op >= r->ops && op < r->ops + OPS_MAX && op->busy;
    if (!*known) return 0;
    op->busy = 0;
    return op->id;
}

/* What the provider wrote may be longer than what these headers know of. */
union error_room {
    struct fi_cq_err_entry entry;
    uint8_t room[512];
};

static void keep_error(struct rail *r) {
    union error_room e;
    uint8_t words[512] = {0};
    memset(&e, 0, sizeof e);
    e.entry.err_data = words;
    e.entry.err_data_size = sizeof words;
    ssize_t rc = fi_cq_readerr(r->cq, &e.entry, 0);
    if (rc == -FI_EAGAIN) return;
    struct outcome *o = keep(r);
    if (!o) return;
    if (rc < 0) {
        r->queue_gone = 1;
        o->err = (int)-rc;
        snprintf(o->text, sizeof o->text, "fi_cq_readerr: %s", fi_strerror((int)-rc));
        return;
    }
    o->id = settle(r, e.entry.op_context, &o->known);
    o->err = e.entry.err;
    o->prov_errno = e.entry.prov_errno;
    o->flags = e.entry.flags;
    const char *said = fi_cq_strerror(r->cq, e.entry.prov_errno, e.entry.err_data, NULL, 0);
    snprintf(o->text, sizeof o->text, "%s", said ? said : "");
    for (char *c = o->text; *c; c++)
        if (!isprint((unsigned char)*c)) *c = ' ';
}

/* Reads what is there; how many. This is also what drives a provider whose progress is manual. */
static size_t drain(struct rail *r) {
    struct fi_cq_data_entry entries[READ_AT_ONCE];
    if (!r->cq || r->queue_gone || r->held + READ_AT_ONCE > BACKLOG_MAX) return 0;
    ssize_t count = fi_cq_read(r->cq, entries, READ_AT_ONCE);
    if (count == -FI_EAGAIN) return 0;
    if (count == -FI_EAVAIL) {
        keep_error(r);
        return 1;
    }
    if (count < 0) {
        struct outcome *o = keep(r);
        r->queue_gone = 1;
        if (o) {
            o->err = (int)-count;
            snprintf(o->text, sizeof o->text, "fi_cq_read: %s", fi_strerror((int)-count));
        }
        return 1;
    }
    for (ssize_t at = 0; at < count; at++) {
        struct outcome *o = keep(r);
        int known;
        uint64_t id = settle(r, entries[at].op_context, &known);
        if (!o) continue;
        o->id = id;
        o->known = known;
        o->flags = entries[at].flags;
        o->len = entries[at].len;
        o->data = entries[at].flags & FI_REMOTE_CQ_DATA ? entries[at].data : 0;
    }
    return (size_t)count;
}

static size_t drain_all(void) {
    size_t count = 0;
    for (int at = 0; at < RAILS_MAX; at++) count += drain(&rails[at]);
    return count;
}

static void say(int at, const struct outcome *o) {
    char ctx[24] = "none";
    if (o->known) snprintf(ctx, sizeof ctx, "%" PRIu64, o->id);
    if (o->err)
        printf("error rail=%d ctx=%s err=%d name=%s prov_errno=%d text=%s\n", at, ctx, o->err,
               o->err == FI_ECANCELED ? "canceled" : "provider", o->prov_errno, o->text);
    else
        printf("comp rail=%d ctx=%s kind=%s%s%s%s%s imm=%d data=0x%" PRIx64 " len=%zu\n", at, ctx,
               o->flags & FI_RECV ? "recv" : "", o->flags & FI_SEND ? "send" : "",
               o->flags & (FI_WRITE | FI_REMOTE_WRITE) ? "write" : "", o->flags & (FI_READ | FI_REMOTE_READ) ? "read" : "",
               o->flags & FI_RMA ? "-rma" : "", !!(o->flags & FI_REMOTE_CQ_DATA), o->data, o->len);
}

static int do_poll(void) {
    int all = !strcmp(word("rail", "0"), "-1");
    struct rail *only = all ? NULL : rail_named("rail");
    uint64_t want = number("want", 1), began = now_ns(), until = began + number("ms", DEFAULT_WAIT_MS) * 1000000;
    uint64_t comps = 0, errors = 0, lost = 0;
    if (!all && !only) return wrong("no such rail");
    do {
        size_t moved = drain_all();
        for (int at = 0; at < RAILS_MAX; at++) {
            struct rail *r = &rails[at];
            if (only && r != only) continue;
            for (; r->held && comps + errors < want; r->held--, r->first = (r->first + 1) % BACKLOG_MAX) {
                struct outcome *o = &r->backlog[r->first];
                *(o->err ? &errors : &comps) += 1;
                say(at, o);
            }
            lost += r->lost;
            r->lost = 0;
        }
        if (!moved) breathe();
    } while (comps + errors < want && now_ns() < until);
    printf("done comps=%" PRIu64 " errors=%" PRIu64 " lost=%" PRIu64 " us=%" PRIu64 "\n", comps, errors, lost,
           (now_ns() - began) / 1000);
    return 0;
}

static int do_eq(void) {
    struct rail *r = rail_named("rail");
    if (!r || !r->eq) return wrong("this rail has no event queue");
    uint64_t until = now_ns() + number("ms", DEFAULT_WAIT_MS) * 1000000;
    int events = 0, errors = 0;
    do {
        uint32_t event = 0;
        uint8_t body[512];
        ssize_t rc = fi_eq_read(r->eq, &event, body, sizeof body, 0);
        if (rc == -FI_EAVAIL) {
            struct fi_eq_err_entry e = {0};
            rc = fi_eq_readerr(r->eq, &e, 0);
            if (rc < 0) return fail("fi_eq_readerr", rc, NULL);
            const char *said = fi_eq_strerror(r->eq, e.prov_errno, e.err_data, NULL, 0);
            printf("eq_error err=%d prov_errno=%d text=%s\n", e.err, e.prov_errno, said ? said : "");
            errors++;
        } else if (rc >= 0) {
            printf("eq_event event=%u\n", event);
            events++;
        } else if (rc != -FI_EAGAIN) {
            return fail("fi_eq_read", rc, NULL);
        }
        if (!drain_all()) breathe();
    } while (!events && !errors && now_ns() < until);
    printf("done events=%d errors=%d\n", events, errors);
    return 0;
}

/* ---- operations ---- */

static struct op *take_op(struct rail *r, uint64_t id) {
    for (size_t tried = 0; tried < OPS_MAX; tried++) {
        struct op *op = &r->ops[r->next_op++ % OPS_MAX];
        if (op->busy) continue;
        op->busy = 1;
        op->id = id;
        return op;
    }
    return NULL;
}

struct work {
    const char *op;
    struct rail *rail;
    uint8_t *at;
    size_t len;
    void *desc;
    fi_addr_t peer;
    uint64_t raddr, rkey, data, tag, flags;
};

static ssize_t post(const struct work *w, struct op *op) {
    struct iovec iov = {w->at, w->len};
    struct fi_rma_iov remote = {w->raddr, w->len, w->rkey};
    void *desc = w->desc;
    uint64_t flags = w->flags;
    if (!strncmp(w->op, "write", 5) || !strcmp(w->op, "read")) {
        struct fi_msg_rma m = {&iov, &desc, 1, w->peer, &remote, 1, &op->room, w->data};
        if (!strcmp(w->op, "read")) return fi_readmsg(w->rail->ep, &m, flags & ~FI_DELIVERY_COMPLETE);
        return fi_writemsg(w->rail->ep, &m, flags | (strcmp(w->op, "writedata") ? 0 : FI_REMOTE_CQ_DATA));
    }
    if (*w->op == 't') {
        struct fi_msg_tagged m = {&iov, &desc, 1, w->peer, w->tag, 0, &op->room, w->data};
        if (!strcmp(w->op, "tsend")) return fi_tsendmsg(w->rail->ep, &m, flags);
        if (!strcmp(w->op, "trecv")) return fi_trecvmsg(w->rail->ep, &m, FI_COMPLETION);
        return -FI_EINVAL;
    }
    struct fi_msg m = {&iov, &desc, 1, w->peer, &op->room, w->data};
    if (!strcmp(w->op, "recv")) return fi_recvmsg(w->rail->ep, &m, FI_COMPLETION);
    if (!strcmp(w->op, "send")) return fi_sendmsg(w->rail->ep, &m, flags);
    if (!strcmp(w->op, "senddata")) return fi_sendmsg(w->rail->ep, &m, flags | FI_REMOTE_CQ_DATA);
    return -FI_EINVAL;
}

static int do_post(void) {
    struct buffer *b = buffer_named();
    struct work w = {.op = word("op", ""), .rail = rail_named("rail")};
    uint64_t off, stride = number("stride", 0), count = number("count", 1), ctx = number("ctx", 0), posted = 0;
    if (!w.rail || !b) return wrong("no such rail or buffer");
    if (!part(b, &off, &w.len)) return wrong("no such part of a buffer");
    if (count && stride && (count - 1) > (b->len - off - w.len) / stride) return wrong("count and stride leave the buffer");
    struct fid_mr *mr = w.rail->mrs[b - buffers];
    w.desc = mr ? fi_mr_desc(mr) : NULL;
    w.peer = given("peer") ? number("peer", 0) : FI_ADDR_UNSPEC;
    w.rkey = number("rkey", 0);
    w.data = number("data", 0);
    w.tag = number("tag", 0);
    w.flags = FI_COMPLETION | w.rail->op_flags;
    if (number("dc", 0)) w.flags |= FI_DELIVERY_COMPLETE;
    if (number("inject", 0)) w.flags |= FI_INJECT;
    uint64_t began = now_ns(), until = began + number("ms", DEFAULT_WAIT_MS) * 1000000;
    ssize_t rc = 0;
    for (; posted < count && !rc; posted++) {
        struct op *op = take_op(w.rail, ctx + posted);
        if (!op) {
            rc = -FI_EAGAIN;
            break;
        }
        w.at = b->at + off + posted * stride;
        w.raddr = number("raddr", 0) + posted * stride;
        while ((rc = post(&w, op)) == -FI_EAGAIN && now_ns() < until)
            if (!drain_all()) breathe();
        if (rc) {
            op->busy = 0;
            break;
        }
    }
    if (rc) {
        printf("fail what=fi_%s rc=%zd posted=%" PRIu64 " text=%s\n", w.op, rc, posted, fi_strerror((int)-rc));
        return 0;
    }
    printf("done posted=%" PRIu64 " us=%" PRIu64 "\n", posted, (now_ns() - began) / 1000);
    return 0;
}

/* Keeps `window` operations in flight on each of `rails`; the same part of the buffer on every rail. */
static int do_stream(void) {
    struct buffer *b = buffer_named();
    uint64_t width = number("rails", 1), count = number("count", 1), window = number("window", 16), off, len;
    uint64_t posted = 0, ended = 0, errors = 0, flying[RAILS_MAX] = {0};
    const char *keys = word("rkey", "0"); /* one per rail, separated by commas */
    uint64_t key[RAILS_MAX] = {0};
    if (!b || !part(b, &off, &len) || !width || width > RAILS_MAX || !window) return wrong("buf, rails or window");
    for (uint64_t at = 0; at < width; at++) {
        char *end;
        if (!rails[at].ep) return wrong("no such rail");
        key[at] = strtoull(keys, &end, 0);
        keys = *end == ',' ? end + 1 : keys;
    }
    uint64_t began = now_ns(), until = began + number("ms", DEFAULT_WAIT_MS) * 1000000;
    ssize_t rc = 0;
    while (ended < count && now_ns() < until && !errors && (!rc || rc == -FI_EAGAIN)) {
        for (uint64_t at = 0; at < width; at++) {
            struct rail *r = &rails[at];
            while (posted < count && flying[at] < window) {
                struct op *op = take_op(r, posted);
                struct fid_mr *mr = r->mrs[b - buffers];
                struct work w = {.op = word("op", "write"), .rail = r, .at = b->at + off, .len = len, .rkey = key[at],
                                 .desc = mr ? fi_mr_desc(mr) : NULL, .peer = number("peer", 0),
                                 .raddr = number("raddr", 0), .flags = FI_COMPLETION | r->op_flags};
                rc = op ? post(&w, op) : -FI_EAGAIN;
                if (rc) {
                    if (op) op->busy = 0;
                    break;
                }
                posted++;
                flying[at]++;
            }
            drain(r);
            for (; r->held; r->held--, r->first = (r->first + 1) % BACKLOG_MAX) {
                errors += !!r->backlog[r->first].err;
                if (r->backlog[r->first].err) say((int)at, &r->backlog[r->first]);
                ended++;
                flying[at]--;
            }
        }
    }
    if (rc && rc != -FI_EAGAIN) return fail("stream", rc, NULL);
    uint64_t us = (now_ns() - began) / 1000;
    printf("done ended=%" PRIu64 " errors=%" PRIu64 " us=%" PRIu64 " mb_per_s=%.1f\n", ended, errors, us,
           us ? (double)ended * (double)len / (double)us : 0.0);
    return 0;
}

static int do_idle(void) {
    idle_progress = (int)number("progress", 1);
    puts("done");
    return 0;
}

static int do_quit(void) {
    for (int at = 0; at < RAILS_MAX; at++)
        if (rails[at].ep) close_rail(&rails[at]);
    puts("done");
    return 1;
}

static const struct {
    const char *name;
    int (*run)(void);
} commands[] = {
    {"info", do_info},     {"open", do_open}, {"close", do_close},     {"name", do_name}, {"av", do_av},
    {"av_remove", do_av_remove}, {"buffer", do_buffer}, {"fill", do_fill}, {"verify", do_verify}, {"mr", do_mr},
    {"mr_close", do_mr_close}, {"post", do_post}, {"poll", do_poll}, {"eq", do_eq}, {"stream", do_stream},
    {"idle", do_idle}, {"quit", do_quit},
};

/* Takes a line apart in place and runs it; 1 at the end. */
static int obey(char *line) {
    char *rest = line, *name = strsep(&rest, " ");
    arg_count = 0;
    for (char *field; rest && (field = strsep(&rest, " "));) {
        char *value = strchr(field, '=');
        if (!value) continue;
        if (arg_count == ARGS_MAX) return wrong("too many arguments");
        *value = 0;
        args[arg_count].key = field;
        args[arg_count++].value = value + 1;
    }
    for (size_t at = 0; at < sizeof commands / sizeof *commands; at++)
        if (!strcmp(commands[at].name, name)) return commands[at].run();
    return wrong("no such command");
}

int main(void) {
    static char line[LINE_MAX_BYTES];
    size_t held = 0;
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    for (;;) {
        struct pollfd in = {STDIN_FILENO, POLLIN, 0};
        struct timespec tick = {0, IDLE_NS};
        int ready = ppoll(&in, 1, idle_progress ? &tick : NULL, NULL);
        if (idle_progress) drain_all();
        if (ready < 0 && errno != EINTR) return 2;
        if (ready <= 0) continue;
        ssize_t got = read(STDIN_FILENO, line + held, sizeof line - held);
        if (got <= 0) return 0; /* the test is gone: so is everything it opened */
        held += (size_t)got;
        for (char *end; (end = memchr(line, '\n', held));) {
            size_t whole = (size_t)(end - line) + 1;
            *end = 0;
            if (whole > 1 && obey(line)) return 0;
            held -= whole;
            memmove(line, end + 1, held);
        }
        if (held == sizeof line) {
            held = 0;
            wrong("the line is too long");
        }
    }
}
