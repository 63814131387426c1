// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

const cniBridge = "cocoit0"

// cniCommand runs ctr where CNI's default directories hold a bridge network of the test's own.
func cniCommand(ctx context.Context, t *testing.T, d *harness.Daemon, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		absent(t, "CNI plugins are absent: apt-get install containernetworking-plugins")
	}
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"coco-it","plugins":[{"type":"bridge","bridge":%q,"isGateway":true,
"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.213.77.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, cniBridge, filepath.Join(dir, "ipam"))
	write(t, filepath.Join(dir, "conf", "10-it.conflist"), conf)
	for _, p := range []string{"/opt/cni/bin", "/etc/cni/net.d"} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctr := d.Command(ctx, args...)
	script := `mount --bind /usr/lib/cni /opt/cni/bin && mount --bind "$1" /etc/cni/net.d && shift && exec "$@"`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"-m", "sh", "-c", script, "sh", filepath.Join(dir, "conf")},
		ctr.Args...)...)
	cmd.Args[6] = filepath.Join(dir, "conf")
	cmd.Env = ctr.Env
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", cniBridge).Run() }) // after the test, without its context
	return cmd
}

func TestCNINetworkReachesTheContainer(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	see := func(runtime string) string {
		ctx, cancel := context.WithTimeout(t.Context(), perCommand)
		defer cancel()
		id := newID(t)
		t.Cleanup(func() { remove(t, d, id) })
		out, err := cniCommand(ctx, t, d, "run", "--rm", "--cni", "--runtime", runtime, harness.Image, id, "sh", "-c",
			"ip -4 -o addr show eth0 | grep -o '10.213.77.[0-9]*/[0-9]*' | sed 's/[0-9]*\\//N\\//'; ip route | sed "+
				"'s/src.*//'; ping -c 2 -W 5 10.213.77.1 | grep received").CombinedOutput()
		if err != nil {
			t.Fatalf("ctr run --cni under %s: %v: %s", runtime, err, out)
		}
		return strings.ReplaceAll(string(out), " \n", "\n")
	}
	want, got := see(harness.RuncRuntime), see(harness.Runtime)
	if !strings.Contains(want, "2 packets received") {
		t.Fatalf("the network does not work under runc: %s", want)
	}
	if got != want {
		t.Errorf("network under runc:\n%s\nunder coco:\n%s", want, got)
	}
}
