// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/testvm"
)

// TestTheFilesOfARunningContainer does the same under runc and under coco to a container that runs all the time, and
// compares what Docker's commands show of its files.
func TestTheFilesOfARunningContainer(t *testing.T) {
	for i, store := range []string{"overlay2", "containerd-snapshotter"} {
		t.Run(store, func(t *testing.T) {
			testvm.Need(t, testvm.Docker)
			d := start(t, i == 1, fmt.Sprintf("cocorn%d", i), fmt.Sprintf("10.215.%d.1/24", i))
			want, got := runningFilesOf(t, d, "runc"), runningFilesOf(t, d, "coco")
			for _, name := range want.order {
				if d := cmp.Diff(want.of[name], got.of[name]); d != "" {
					t.Errorf("%s (-runc +coco):\n%s", name, d)
				}
			}
		})
	}
}

// runningFilesOf reads the files of a container while it runs, each a moment after they were written.
func runningFilesOf(t *testing.T, d *daemon, runtime string) *views {
	t.Helper()
	v := &views{of: map[string][]string{}}
	name := "running-" + runtime
	defer d.docker("rm", "-f", name)
	d.must("run", "-d", "--name", name, "--runtime", runtime, image, "sh", "-c",
		"echo first >/byfirst; while test ! -e /go; do sleep 0.1; done; echo later >/byfirst; touch /gone; exec sleep 1000")
	do := func(script string) { d.must("exec", name, "sh", "-ec", script) }
	cp := func(step, path string) { v.add(step, listing(t, d.must("cp", name+":"+path, "-"))) }
	at := func(time string) string { return "find /d /byfirst -exec touch -h -d '" + time + "' {} ';'" }
	do("mkdir /d; echo hi >/d/f; ln -s f /d/link; chmod 4711 /d/f; " +
		"dd if=/dev/zero of=/d/big bs=1M count=8 2>/dev/null; printf end >>/d/big; " +
		at("2001-02-03 04:05:06"))
	cp("by an exec", "/d")
	cp("by the first process", "/byfirst")
	do("rm /d/f /etc/group; mkdir /d/g; echo two >/d/g/two; echo more >/d/new; mv /d/link /d/moved; " +
		at("2002-02-03 04:05:06"))
	v.add("diff", sorted(strings.Split(d.must("diff", name), "\n")))
	_, errs, code := d.docker("cp", name+":/d/f", "-")
	v.add("removed", []string{fmt.Sprint(code), strings.ReplaceAll(errs, name, "")})
	v.add("export", listing(t, d.must("export", name)))
	d.input(brought(t), "cp", "-", name+":/")
	v.add("brought in, seen by an exec", strings.Split(d.must("exec", name, "sh", "-c",
		"cat /go; cd /d/in; stat -c '%n %a %u:%g %s %F %Y' . f ../in/l; cat f; readlink l"), "\n"))
	do("until test -e /gone; do sleep 0.1; done; " + at("2003-02-03 04:05:06")) // the first process sees /go, too
	cp("brought in", "/d/in")
	cp("changed by the first process", "/byfirst")
	cp("at last", "/d")
	return v
}

// brought is an archive of files for a running container.
func brought(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "go", Mode: 0o600, Size: 2},
		{Name: "d/in", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 7, Gid: 8},
		{Name: "d/in/f", Mode: 0o4711, Uid: 7, Size: 2},
		{Name: "d/in/l", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"},
	} {
		h.ModTime = time.Unix(1e9, 0)
		err := w.WriteHeader(&h)
		if err == nil && h.Size > 0 {
			_, err = w.Write([]byte("x\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
