/* A fake nmap of no cost: what -sL shows stands in the file FAKE_LIST; of the addresses to scan every FAKE_UP-th is up.
   A call that scans adds a byte to FAKE_CALLS. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void list(const char *path)
{
    static char block[1 << 16];
    FILE *file = fopen(path, "r");
    size_t size;

    while (file && (size = fread(block, 1, sizeof block, file)) > 0)
        fwrite(block, 1, size, stdout);
}

static int up(const char *address, int every)
{
    int a, b, c, d;

    return sscanf(address, "%d.%d.%d.%d", &a, &b, &c, &d) == 4 && (c * 256 + d) % every == 0;
}

int main(int count, char **words)
{
    int at, first = count, hosts = 0, every = getenv("FAKE_UP") ? atoi(getenv("FAKE_UP")) : 1;
    long now = (long)time(NULL);
    FILE *calls;

    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    for (at = 1; at < count && first == count; at++) {
        if (!strcmp(words[at], "-sL")) {
            list(getenv("FAKE_LIST"));
            return 0;
        }
        if (!strcmp(words[at], "--"))
            first = at + 1;
    }
    if (getenv("FAKE_CALLS") && (calls = fopen(getenv("FAKE_CALLS"), "a"))) {
        fputc('.', calls);
        fclose(calls);
    }
    printf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE nmaprun>\n"
           "<nmaprun scanner=\"nmap\" args=\"nmap -F\" start=\"%ld\" version=\"7.93\" xmloutputversion=\"1.05\">\n"
           "<scaninfo type=\"syn\" protocol=\"tcp\" numservices=\"100\" services=\"1-100\"/>\n", now);
    for (at = first; at < count; at++) {
        if (!up(words[at], every))
            continue;
        hosts++;
        printf("<host starttime=\"%ld\" endtime=\"%ld\"><status state=\"up\" reason=\"echo-reply\" reason_ttl=\"0\"/>\n"
               "<address addr=\"%s\" addrtype=\"ipv4\"/>\n<hostnames>\n</hostnames>\n<ports><extraports state=\"closed\" "
               "count=\"98\">\n</extraports>\n", now, now, words[at]);
        printf("<port protocol=\"tcp\" portid=\"22\"><state state=\"open\" reason=\"syn-ack\" reason_ttl=\"64\"/><service "
               "name=\"ssh\" method=\"table\" conf=\"3\"/></port>\n<port protocol=\"tcp\" portid=\"80\"><state state=\"open\""
               " reason=\"syn-ack\" reason_ttl=\"64\"/><service name=\"http\" method=\"table\" conf=\"3\"/></port>\n</ports>\n"
               "<times srtt=\"100\" rttvar=\"50\" to=\"100000\"/>\n</host>\n");
    }
    printf("<runstats><finished time=\"%ld\" timestr=\"now\" elapsed=\"0.00\" summary=\"\" exit=\"success\"/>"
           "<hosts up=\"%d\" down=\"%d\" total=\"%d\"/>\n</runstats>\n</nmaprun>\n",
           now, hosts, count - first - hosts, count - first);
    return 0;
}
