/*
 * The protocol between the hv-azure-blob device and its backend, as
 * docs/vsp-protocol.md describes it.  All integers are little-endian.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_HYPERV_AZURE_BLOB_BACKEND_H
#define HW_HYPERV_AZURE_BLOB_BACKEND_H

#include <stdint.h>

#define AZURE_BLOB_PROTOCOL_VERSION     2
#define AZURE_BLOB_FRAME_MAGIC          0x42505641 /* "AVPB" */
#define AZURE_BLOB_MAX_PAYLOAD          (2 << 20)
#define AZURE_BLOB_MAX_FDS              16
#define AZURE_BLOB_MAX_PACKET_PAYLOAD   4096
#define AZURE_BLOB_MAX_IN_FLIGHT        1024
#define AZURE_BLOB_MAX_QUEUED_PACKETS   4096

/* STATUS_CONNECTION_DISCONNECTED: answers requests that have no backend */
#define AZURE_BLOB_STATUS_DISCONNECTED  0xC000020C

typedef enum AzureBlobFrameType {
    AZURE_BLOB_FRAME_HELLO = 1,
    AZURE_BLOB_FRAME_CHANNEL = 2,
    AZURE_BLOB_FRAME_REQUEST = 3,
    AZURE_BLOB_FRAME_ATTACH = 101,
    AZURE_BLOB_FRAME_PACKET = 102,
} AzureBlobFrameType;

#define AZURE_BLOB_REGION_READ_ONLY         0x1
#define AZURE_BLOB_FLAG_WANTS_COMPLETION    0x1
/* The payload of a PACKET is the whole packet, with its descriptor */
#define AZURE_BLOB_FLAG_RAW                 0x2

#define AZURE_BLOB_WIRE __attribute__((packed))

typedef struct AZURE_BLOB_WIRE AzureBlobFrame {
    uint32_t magic;
    uint16_t type;
    uint16_t reserved0;
    uint32_t length;
    uint32_t reserved1;
} AzureBlobFrame;

typedef struct AZURE_BLOB_WIRE AzureBlobRegion {
    uint64_t gpa;
    uint64_t size;
    uint64_t fd_offset;
    uint32_t fd_index;
    uint32_t flags;
} AzureBlobRegion;

typedef struct AZURE_BLOB_WIRE AzureBlobHello {
    uint32_t version;
    uint32_t num_regions;
    uint8_t instance[16];
    uint32_t channel_open;
    uint32_t num_fds;
    AzureBlobRegion regions[];
} AzureBlobHello;

typedef struct AZURE_BLOB_WIRE AzureBlobChannel {
    uint32_t open;
} AzureBlobChannel;

typedef struct AZURE_BLOB_WIRE AzureBlobSegment {
    uint64_t gpa;
    uint64_t len;
} AzureBlobSegment;

/* Followed by the inline data, zeroes up to a multiple of 8, the segments */
typedef struct AZURE_BLOB_WIRE AzureBlobRequest {
    uint64_t transaction_id;
    uint16_t packet_type;
    uint16_t flags;
    uint32_t inline_len;
    uint32_t num_segments;
    uint16_t epoch;
    uint16_t reserved;
} AzureBlobRequest;

typedef struct AZURE_BLOB_WIRE AzureBlobAttach {
    uint32_t version;
    uint32_t flags;
} AzureBlobAttach;

typedef struct AZURE_BLOB_WIRE AzureBlobPacket {
    uint64_t transaction_id;
    uint16_t packet_type;
    uint16_t flags;
    uint16_t payload_len;
    uint16_t epoch;
    uint8_t payload[];
} AzureBlobPacket;

/* The payload of an answer that the device itself gives to the VSC */
typedef struct AZURE_BLOB_WIRE AzureBlobResponse {
    uint32_t length;
    uint32_t error;
    uint32_t response_len;
} AzureBlobResponse;

_Static_assert(sizeof(AzureBlobFrame) == 16, "frame header");
_Static_assert(sizeof(AzureBlobRegion) == 32, "HELLO region");
_Static_assert(sizeof(AzureBlobHello) == 32, "HELLO");
_Static_assert(sizeof(AzureBlobSegment) == 16, "REQUEST segment");
_Static_assert(sizeof(AzureBlobRequest) == 24, "REQUEST");
_Static_assert(sizeof(AzureBlobPacket) == 16, "PACKET");
_Static_assert(sizeof(AzureBlobResponse) == 12, "response");

#endif
