// The other end of a Port with {packet, 4} that speaks by itself: asked with <<count:32, us:32, bytes:32>>, it sends so many
// times {nanoseconds, binary} in the external format, the time at which it was made, with such pauses.

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int read_all(char *to, size_t left) {
    while (left > 0) {
        ssize_t got = read(0, to, left);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        to += got;
        left -= (size_t)got;
    }
    return 1;
}

static void write_all(const char *from, size_t left) {
    while (left > 0) {
        ssize_t wrote = write(1, from, left);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) exit(1);
        from += wrote;
        left -= (size_t)wrote;
    }
}

static void put(char *to, uint32_t number) {
    number = htonl(number);
    memcpy(to, &number, 4);
}

int main(void) {
    uint32_t asked[4];
    while (read_all((char *)asked, sizeof asked)) {
        uint32_t count = ntohl(asked[1]), us = ntohl(asked[2]), bytes = ntohl(asked[3]);
        // Length, version, a tuple of two, a big integer of eight bytes, a binary.
        size_t whole = 4 + 1 + 2 + 3 + 8 + 5 + (size_t)bytes;
        char *packet = malloc(whole);
        struct timespec pause = {us / 1000000, (us % 1000000) * 1000L}, now;
        if (!packet) return 1;
        put(packet, (uint32_t)(whole - 4));
        memcpy(packet + 4, "\203h\002n\010\000", 6);
        packet[18] = 'm';
        put(packet + 19, bytes);
        for (uint32_t n = 0; n < count; n++) {
            if (us) nanosleep(&pause, NULL);
            clock_gettime(CLOCK_MONOTONIC, &now);
            uint64_t stamp = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
            for (int byte = 0; byte < 8; byte++) packet[10 + byte] = (char)(stamp >> 8 * byte);
            memset(packet + 23, 'x', bytes);
            write_all(packet, whole);
        }
        free(packet);
    }
    return 0;
}
