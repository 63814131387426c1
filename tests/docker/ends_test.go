// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"strings"
	"testing"
)

// checkNoCommand starts what is no command: the exit codes are those of Docker with runc, and the error is one sentence
// with the words that Docker makes them of.
func checkNoCommand(t *testing.T, d *daemon) {
	t.Helper()
	for _, c := range []struct {
		command, words string
		code           int
	}{
		{"nosuchcmd", `exec: "nosuchcmd": executable file not found in $PATH`, 127},
		{"/nosuch/cmd", `exec: "/nosuch/cmd": no such file or directory`, 127},
		{"/etc/passwd", `exec: "/etc/passwd": permission denied`, 126},
		{"/tmp", `exec: "/tmp": is a directory`, 126},
	} {
		_, errs, code := d.docker("run", "--rm", "--runtime", "coco", image, c.command)
		if code != c.code || !strings.Contains(errs, c.words) || strings.Count(errs, "container ") > 1 {
			t.Errorf("docker run %s: exit %d, %q; want %d and %q, and the container named once", c.command, code, errs,
				c.code, c.words)
		}
	}
}

// checkSharing asks for namespaces of others beside a container that serves, and goes on serving.
func checkSharing(t *testing.T, d *daemon) {
	t.Helper()
	defer d.docker("rm", "-f", "web")
	d.must("run", "-d", "--name", "web", "--runtime", "coco", "--ipc", "shareable", image, "sh", "-c", server)
	address := strings.TrimSpace(d.must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"))
	serves(t, "alone", address)
	for _, c := range [][2]string{
		{"--net", "container:web"},
		{"--ipc", "container:web"},
		{"--pid", "container:web"},
		{"--pid", "host"},
		{"--ipc", "host"},
		{"--uts", "host"},
	} {
		out, errs, code := d.docker("run", "--rm", "--runtime", "coco", c[0], c[1], image, "true")
		kind, _, _ := strings.Cut(c[1], ":")
		if code != 125 || !strings.Contains(errs, c[0]+" "+kind) {
			t.Errorf("docker run %s %s: exit %d, %s%s; want a refusal that names it", c[0], c[1], code, out, errs)
		}
	}
	serves(t, "afterwards", address)
	if _, errs, code := d.docker("exec", "web", "ping", "-c", "1", "-W", "5", "10.213.0.1"); code != 0 {
		t.Errorf("the container does not reach its gateway any more: %s", errs)
	}
}
