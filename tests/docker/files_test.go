// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// fill makes files of every kind below /d, and changes, replaces and removes files of the image.
const fill = `set -e
mkdir -p /d/sub/deep /d/closed; cd /d
: >empty; echo hello >small; chown 7:8 small; echo gone >gone; echo z >zero; chmod 0 zero; chmod 700 closed
yes abcdefgh | head -c 3000000 >big; ln big sub/big2; ln big sub/deep/big3
truncate -s 64M sparse; printf tail | dd of=sparse bs=1 seek=40000000 conv=notrunc 2>/dev/null
ln -s ../etc/passwd rel; ln -s /nowhere/at/all abs; mkfifo pipe; echo x >suid; chmod 4755 suid; chmod 1777 sub
printf x >"$(printf 'new\nline')"; printf x >"$(printf 'l\351tin')"; printf x >"$(printf %0255d 0)"
chmod 640 /capable
rm /etc/group; rm -r /home /mnt; mkdir /home; echo n >/home/new; echo more >>/etc/passwd; chown 5:6 /root
find /d /home /etc/passwd /root -exec touch -h -d '2001-02-03 04:05:06' {} ';'
touch /ready`

// change changes what was there, as a container does after it was committed or started again.
const change = `set -e
rm /d/gone /d/small; echo second >/d/second; rm -r /d/sub/deep; mkdir /d/sub/deep; echo again >/d/sub/deep/f
mv /d/empty /d/moved; echo appended >>/d/sub/big2; rm /etc/passwd; touch /etc/group
find /d /etc/group -exec touch -h -d '2002-03-04 05:06:07' {} ';'`

// show lists what a container sees of them. The size of a directory is the file system's matter.
const show = `for t in '-type d' '! -type d'; do
f='%n %a %u:%g %s %h %F %Y'; test "$t" != '-type d' || f='%n %a %u:%g %F %Y'
find /d /home /etc /root /mnt /capable $t -exec stat -c "$f" {} ';' 2>&1
done | grep -v -e /etc/host -e /etc/resolv -e '^/etc ' -e mtab | sort; find /d -type f -exec sha256sum {} ';' | sort`

// TestWhatAContainerWritesIsKept does the same under runc and under coco, and compares what Docker's commands show.
func TestWhatAContainerWritesIsKept(t *testing.T) {
	for i, store := range []string{"overlay2", "containerd-snapshotter"} {
		t.Run(store, func(t *testing.T) {
			testvm.Need(t, testvm.Docker)
			before, err := harness.TakeTraces()
			if err != nil {
				t.Fatal(err)
			}
			t.Run("work", func(t *testing.T) {
				d := start(t, i == 1, fmt.Sprintf("cocofl%d", i), fmt.Sprintf("10.214.%d.1/24", i))
				want, got := filesOf(t, d, "runc"), filesOf(t, d, "coco")
				for _, name := range want.order {
					if d := cmp.Diff(want.of[name], got.of[name]); d != "" {
						t.Errorf("%s (-runc +coco):\n%s", name, d)
					}
				}
			})
			left, err := harness.Leaks(t.Context(), before, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range left {
				if !strings.HasPrefix(l, "cgroup ") || !strings.HasSuffix(l, "/docker") { // one for all containers, kept by Docker
					t.Errorf("left behind: %s", l)
				}
			}
		})
	}
}

// views are what Docker's commands show, by name.
type views struct {
	order []string
	of    map[string][]string
}

func (v *views) add(name string, lines []string) {
	v.order = append(v.order, name)
	v.of[name] = lines
}

// filesOf goes through the life of a container.
func filesOf(t *testing.T, d *daemon, runtime string) *views {
	t.Helper()
	v := &views{of: map[string][]string{}}
	name := "files-" + runtime
	defer d.docker("rm", "-f", name)
	lines := func(args ...string) []string { return strings.Split(strings.TrimSpace(d.must(args...)), "\n") }
	look := func(step string) {
		v.add(step+": diff", sorted(lines("diff", name)))
		v.add(step+": export", listing(t, d.must("export", name)))
		v.add(step+": cp", listing(t, d.must("cp", name+":/d", "-")))
	}
	d.must("create", "--name", name, "--runtime", runtime, "-e", "FILL="+fill, image, "sh", "-c",
		"trap 'exit 0' TERM; test -e /ready || sh -c \"$FILL\"; sleep 1000 & wait")
	d.input(capable(t), "cp", "-", name+":/")
	d.must("start", name)
	d.must("exec", name, "sh", "-c", "until test -e /ready; do sleep 0.1; done")
	d.must("commit", name, "image-"+runtime)
	v.add("committed", lines("run", "--rm", "--runtime", "runc", "image-"+runtime, "sh", "-c", show))
	d.must("exec", name, "sh", "-c", change)
	d.must("pause", name)
	v.add("paused: diff", sorted(lines("diff", name)))
	v.add("paused: cp", listing(t, d.must("cp", name+":/d", "-")))
	d.must("unpause", name)
	d.must("stop", name)
	look("stopped")
	d.must("start", name)
	v.add("started again", lines("exec", name, "sh", "-c", show))
	d.must("exec", name, "sh", "-c",
		"rm /d/second /d/big; echo third >/d/third; touch -d '2003-04-05 06:07:08' /d/third /d")
	d.must("restart", name)
	v.add("restarted", lines("exec", name, "sh", "-c", show))
	d.must("kill", name)
	d.must("wait", name)
	look("killed")
	return v
}

// input is must with an input.
func (d *daemon) input(in []byte, args ...string) {
	d.t.Helper()
	cmd := exec.CommandContext(d.t.Context(), testvm.Unpacked("docker", "docker"),
		append([]string{"-H", "unix://" + d.socket}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// capable is an archive of a file with a capability and an attribute.
func capable(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{
		Name: "capable", Mode: 0o755, Size: 3, Format: tar.FormatPAX, ModTime: time.Unix(1e9, 0),
		PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04" + strings.Repeat("\x00", 14),
		},
	}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("cap")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listing has a line for each entry of an archive. Times are those that the container has set.
func listing(t *testing.T, archive string) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sorted(out)
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatal(err)
		}
		at := ""
		if y := h.ModTime.UTC().Year(); 2001 <= y && y <= 2003 {
			at = h.ModTime.UTC().String()
		}
		if strings.HasPrefix(strings.TrimPrefix(h.Name, "./"), "etc/host") || strings.HasSuffix(h.Name, "etc/resolv.conf") {
			continue // the engine's, different in every container
		}
		line := fmt.Sprintf("%q %c %04o %d:%d %d %q %x", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname,
			sum.Sum(nil)[:6])
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				line += fmt.Sprintf(" %s=%x", k, v)
			}
		}
		out = append(out, line+" "+at)
	}
}

func sorted(lines []string) []string {
	sort.Strings(lines)
	return lines
}
