// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"strings"
	"testing"
)

// checkNames looks up containers of a user-defined network by name and by alias, as each project of compose does, by
// UDP and by TCP, and has a container under runc look up one under coco.
func checkNames(t *testing.T, d *daemon) {
	t.Helper()
	d.must("network", "create", "--subnet", "10.215.0.0/24", "project")
	defer func() {
		d.docker("rm", "-f", "web", "peer")
		d.must("network", "rm", "project")
	}()
	d.must("run", "-d", "--name", "peer", "--network", "project", "--network-alias", "db", "--ip", "10.215.0.7", image,
		"sleep", "1000")
	d.must("run", "-d", "--name", "web", "--network", "project", "--runtime", "coco", "--ip", "10.215.0.8", image,
		"sh", "-c", server)
	for _, name := range []string{"peer", "db"} {
		if out, errs, code := d.docker("exec", "web", "nslookup", "-type=a", name); code != 0 ||
			!strings.Contains(out, "10.215.0.7") {
			t.Errorf("nslookup %s: exit %d, %s%s", name, code, out, errs)
		}
	}
	out := d.must("exec", "web", "ping", "-c", "1", "-W", "5", "db")
	if !strings.Contains(out, "PING db (10.215.0.7)") {
		t.Errorf("ping db: %s", out)
	}
	// A question for the address of db, by TCP: the length, the header, the name, type A of class IN.
	tcp := `printf '\0\24\1\2\1\0\0\1\0\0\0\0\0\0\2db\0\0\1\0\1' | nc -w 5 127.0.0.11 53 | od -An -tu1`
	if got := strings.Join(strings.Fields(d.must("exec", "web", "sh", "-c", tcp)), " "); !strings.HasSuffix(got,
		"10 215 0 7") {
		t.Errorf("an answer by TCP: %s", got)
	}
	if out, errs, code := d.docker("exec", "web", "nslookup", "-type=a", "nosuchname.invalid"); code == 0 {
		t.Errorf("a name that is not there: %s%s", out, errs)
	}
	if got := d.must("exec", "peer", "wget", "-q", "-O", "-", "http://web/"); got != "served\n" {
		t.Errorf("the peer under runc gets %q from web", got)
	}
}
