// The other end of a Port with {packet, 4}: gives back what it gets. As few system calls as can be: one read and one write
// for what fits into a pipe.

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_all(const char *from, size_t left) {
    while (left > 0) {
        ssize_t wrote = write(1, from, left);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) exit(1);
        from += wrote;
        left -= (size_t)wrote;
    }
}

int main(void) {
    size_t capacity = 1 << 16, have = 0;
    char *buffer = malloc(capacity);
    if (!buffer) return 1;
    for (;;) {
        ssize_t got = read(0, buffer + have, capacity - have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0;
        have += (size_t)got;
        for (;;) {
            uint32_t length;
            if (have < 4) break;
            memcpy(&length, buffer, 4);
            size_t whole = 4 + (size_t)ntohl(length);
            if (whole > capacity) {
                // Room for all of it: it goes back as it came, in one piece.
                char *larger = realloc(buffer, whole);
                if (!larger) return 1;
                buffer = larger;
                capacity = whole;
            }
            if (have < whole) break;
            write_all(buffer, whole);
            have -= whole;
            memmove(buffer, buffer + whole, have);
        }
    }
}
