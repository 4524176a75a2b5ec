/*
 * TCG plugin: how many instructions the guest has executed, by page of code
 *
 * Arguments: socket=PATH.  Whoever connects there is sent the counts so far, a
 * line "PAGE COUNT" for each page of the kernel's half of the address space
 * (the page's address in hexadecimal) and one for all of the user's half, whose
 * page is 0; then the connection is closed.
 *
 * A block counts as executed whole when it is entered, so one that a fault
 * ends early counts too much.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "qemu-plugin.h"

#define MAX_PAGES   32768
#define PAGE_MASK   (~UINT64_C(4095))
#define KERNEL_HALF (UINT64_C(1) << 63)

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

/* An entry per vCPU, and in it a counter per page */
static struct qemu_plugin_scoreboard *counts;

static GMutex lock;     /* protects what follows */
static GHashTable *indices;
static uint64_t pages[MAX_PAGES];
static uint64_t num_pages;

static qemu_plugin_u64 counter(uint64_t index)
{
    return (qemu_plugin_u64) { counts, index * sizeof(uint64_t) };
}

/* The user's half is one page, and so is what finds no room in the table */
static uint64_t index_of(uint64_t address)
{
    uint64_t page = address & KERNEL_HALF ? address & PAGE_MASK : 0;
    uint64_t index;
    gpointer known;

    g_mutex_lock(&lock);
    if (g_hash_table_lookup_extended(indices, (gpointer)page, NULL, &known)) {
        index = (uint64_t)known;
    } else {
        index = MIN(num_pages, MAX_PAGES - 1);
        if (index == num_pages) {
            pages[num_pages++] = page;
        }
        g_hash_table_insert(indices, (gpointer)page, (gpointer)index);
    }
    g_mutex_unlock(&lock);
    return index;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        tb, QEMU_PLUGIN_INLINE_ADD_U64,
        counter(index_of(qemu_plugin_tb_vaddr(tb))), qemu_plugin_tb_n_insns(tb));
}

static void *answer(void *opaque)
{
    int listener = GPOINTER_TO_INT(opaque);
    int connection;

    while ((connection = accept(listener, NULL, NULL)) >= 0) {
        FILE *out = fdopen(connection, "w");
        uint64_t n;

        g_mutex_lock(&lock);
        n = num_pages;
        g_mutex_unlock(&lock);
        for (uint64_t i = 0; i < n; i++) {
            fprintf(out, "%" PRIx64 " %" PRIu64 "\n", pages[i],
                    qemu_plugin_u64_sum(counter(i)));
        }
        fclose(out);
    }
    return NULL;
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id,
                                           const qemu_info_t *info,
                                           int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    pthread_t thread;
    int listener;

    if (argc != 1 || !g_str_has_prefix(argv[0], "socket=") ||
        strlen(argv[0] + 7) >= sizeof(address.sun_path)) {
        fprintf(stderr, "instructions: the one argument is socket=PATH\n");
        return -1;
    }
    strcpy(address.sun_path, argv[0] + 7);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
        listen(listener, 1)) {
        perror("instructions: cannot listen");
        return -1;
    }

    counts = qemu_plugin_scoreboard_new(MAX_PAGES * sizeof(uint64_t));
    indices = g_hash_table_new(NULL, NULL);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return pthread_create(&thread, NULL, answer, GINT_TO_POINTER(listener));
}
