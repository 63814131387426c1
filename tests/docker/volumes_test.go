// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"path/filepath"
	"testing"
)

// checkVolumes writes to a named volume, an anonymous one and a directory of the host. The next container
// sees what one has written, under coco and under runc, and a container sees what the host writes.
func checkVolumes(t *testing.T, d *daemon) {
	t.Helper()
	defer d.docker("rm", "-f", "-v", "keeper")
	dir := t.TempDir()
	mounts := []string{"-v", "db:/data", "-v", dir + ":/d"}
	d.must(append(append([]string{"run", "--rm", "--runtime", "coco"}, mounts...), image,
		"sh", "-c", "echo kept >/data/f && echo seen >/d/g && chown 7:8 /data/f")...)
	if b, err := os.ReadFile(filepath.Join(dir, "g")); string(b) != "seen\n" {
		t.Errorf("what the container wrote to a directory of the host: %q, %v", b, err)
	}
	d.must("run", "-d", "--name", "keeper", "--runtime", "coco", "-v", "db:/data", "-v", "/anon", "-v", dir+":/d:ro",
		image, "sh", "-c", "cat /data/f >/anon/f; sleep 1000")
	if got := d.must("exec", "keeper", "sh", "-c", "cat /data/f /anon/f; stat -c %u:%g /data/f; "+
		"touch /d/no || echo read-only"); got != "kept\nkept\n7:8\nread-only\n" {
		t.Errorf("the second container has %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "late"), []byte("late\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a file that the host adds", func() (string, bool) {
		out, _, _ := d.docker("exec", "keeper", "cat", "/d/late")
		return out, out == "late\n"
	})
	if got := d.must("run", "--rm", "--runtime", "runc", "--volumes-from", "keeper", image, "cat", "/data/f", "/anon/f",
		"/d/late"); got != "kept\nkept\nlate\n" {
		t.Errorf("--volumes-from, under runc: %q", got)
	}
	out := filepath.Join(dir, "copy")
	d.must("cp", "keeper:/data/f", out)
	if b, err := os.ReadFile(out); string(b) != "kept\n" {
		t.Errorf("docker cp from the volume: %q, %v", b, err)
	}
	d.must("rm", "-f", "-v", "keeper")
	d.must("volume", "rm", "db")
}
