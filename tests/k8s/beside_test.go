// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/tests/k8s/kube"
	"github.com/coco-shim/coco/tests/suite"
)

// besideManifest has a container for each fault that users met; DIR, TOOLS and KATA are replaced. The pod's name makes
// the node's network plug-in add rules and tables.
const besideManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: routed
  annotations:
    KATAhypervisor.default_vcpus: "2"
    KATAhypervisor.enable_iommu: "true"
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: limits, image: IMAGE, command: [sh, -c, "ulimit -a; ulimit -Ha"]}
  - {name: absent, image: IMAGE, command: [/no/such/program]}
  - {name: relative, image: IMAGE, command: [nosuchprogram]}
  - {name: text, image: IMAGE, command: [/etc/passwd]}
  - {name: directory, image: IMAGE, command: [/tmp]}
  - name: oom
    image: IMAGE
    command: [sh, -c, "x=a; while true; do x=$x$x; done"]
    resources: {limits: {memory: 20Mi}}
  - name: names
    image: IMAGE
    command: [sh, -c, "cd /host; for f in *; do echo \"$f\" | od -An -c | tail -n 2; cat \"$f\"; stat -c '%u %g %a %y' \"$f\"; done; stat -c '%F %t:%T' /masked"]
    volumeMounts: [{name: host, mountPath: /host, readOnly: true}, {name: none, mountPath: /masked}]
  - name: image
    image: IMAGE
    command: [sh, -c, "stat -c '%s %a' /img/model; ls /img/many | wc -l; touch /img/x 2>&1 || echo read-only"]
    volumeMounts: [{name: model, mountPath: /img}]
  - name: routes
    image: IMAGE
    command: [sh, -c, "{ ip rule; ip route show table all | grep -v 'table local\\|ff00::\\|fe80::' | sed 's/ proto [a-z0-9]*//; s/  */ /g; s/ $//' | sort; ping -c1 -W2 10.60.0.1 2>&1 | tail -1; } | sed \"s/$IP/IP/g; s/10[.]214[.][0-9]*/NET/g\""]
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  - name: outputs
    image: IMAGE
    command: [sh, -c, "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"]
  - name: rights
    image: IMAGE
    command: [sh, -c, "t() { n=$1; shift; (\"$@\") >/dev/null 2>&1 && echo $n; }; tun() { : <>/dev/net/tun; }; nft() { /tools/ld-linux-x86-64.so.2 --library-path /tools --argv0 iptables /tools/xtables-nft-multi -N coco; }; t tun tun; t veth ip link add v0 type veth peer name v1; t bridge ip link add br0 type bridge; t dummy ip link add d0 type dummy; t loop test -e /dev/loop-control; t nftables nft; mkdir /m; mount -t tmpfs t /m && mkdir /m/u /m/w /m/l; t overlay mount -t overlay o -olowerdir=/m/l,upperdir=/m/u,workdir=/m/w /mnt; echo end"]
    securityContext: {privileged: true}
    volumeMounts: [{name: tools, mountPath: /tools, readOnly: true}]
  - name: layer
    image: IMAGE
    command: [sh, -c, "head -c 300000000 /dev/zero >/f; stat -c %s /f; exec sleep 1000"]
  volumes:
  - {name: host, hostPath: {path: DIR, type: Directory}}
  - {name: tools, hostPath: {path: TOOLS, type: Directory}}
  - {name: none, hostPath: {path: /dev/null, type: CharDevice}}
  - {name: model, image: {reference: "docker.io/library/model:t", pullPolicy: Never}}
`

// started are the words that clients look for in the message of a container that could not start.
var started = []string{
	"no such file or directory", "executable file not found", "permission denied",
	"/no/such/program", "nosuchprogram", "/etc/passwd", "/tmp",
}

var besideReport = flag.String("beside.report", "", "compare pods beside runc, and write what is seen to this page")

// TestWhatUsersMetIsAsUnderRunc runs the same pod under both runtimes: each fault of table C of
// docs/decisions/boundaries.md that a pod can show. It runs on demand, `make k8s-beside`.
func TestWhatUsersMetIsAsUnderRunc(t *testing.T) {
	if *besideReport == "" {
		t.Skip("runs on demand: make k8s-beside")
	}
	names := strings.NewReplacer("DIR", besideFiles(t), "TOOLS", nftables(t), "IMAGE", kube.Busybox,
		"KATA", contract.KataConfigPrefix)
	manifest := names.Replace(besideManifest)
	archive := besideImage(t)
	seen := map[string]map[string]string{}
	underBoth(t, func(t *testing.T, n *kube.Node) {
		if _, err := n.Ctr(t.Context(), "-n", "k8s.io", "images", "import", archive); err != nil {
			t.Fatal(err)
		}
		put(t, n, "routed", manifest)
		seen[n.Handler] = look(t, n)
		if log := read(t, n.Containerd.Logfile); n.Handler == "coco" &&
			!strings.Contains(log, "hypervisor.enable_iommu has no effect") {
			t.Error("no line of the log tells that an annotation of Kata's has no effect")
		}
	})
	want, got := seen["runc"], seen["coco"]
	if want == nil || got == nil {
		return // the one that failed has said so
	}
	if err := os.WriteFile(*besideReport, []byte(besidePage(want, got)), 0o644); err != nil {
		t.Error(err)
	}
	got["rights"] = atLeast(want["rights"], got["rights"]) // the guest has more than some nodes
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("what the pod shows (-runc +coco):\n%s", d)
	}
	for row, words := range map[string]string{
		"limits": "open files", "names": "351", "image": "read-only", "routes": "lookup 100", "oom": "137 OOMKilled",
		"absent": "no such file", "rights": "veth", "layer": "300000000", "umask": "0022", "figure": "true",
	} {
		if !strings.Contains(want[row], words) {
			t.Errorf("under runc the row %s shows no %q: %q", row, words, want[row])
		}
	}
}

// look waits for the pod and returns what is seen of each row.
func look(t *testing.T, n *kube.Node) map[string]string {
	t.Helper()
	const name = "routed"
	rows := map[string]string{}
	pod := await(t, n, name, "all but one container have ended", func(p *kube.Pod) bool {
		ended := 0
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Terminated != nil {
				ended++
			}
		}
		return ended > 0 && ended == len(p.Status.ContainerStatuses)-1
	})
	logged(t, n, name, "layer", "300000000")
	for _, s := range pod.Status.ContainerStatuses {
		logs, err := n.Logs(t.Context(), name, s.Name)
		end := s.State.Terminated
		switch {
		case end == nil: // the one that stays
			rows[s.Name] = fmt.Sprint(logs, err)
		case end.Reason == "StartError" || end.Reason == "ContainerCannotRun":
			rows[s.Name] = fmt.Sprintf("%d %s: %s", end.ExitCode, end.Reason, searched(end.Message))
			logs = end.Message
		case s.Name == "outputs":
			rows[s.Name] = fmt.Sprintf("%d, out %t, err %t", end.ExitCode, counts(logs, "out"), counts(logs, "err"))
		case s.Name == "oom": // the shell may complain before its end
			rows[s.Name] = fmt.Sprintf("%d %s", end.ExitCode, end.Reason)
		default:
			rows[s.Name] = fmt.Sprintf("%d %s\n%s%v", end.ExitCode, end.Reason, logs, err)
		}
		t.Logf("%s: %+v %.400s", s.Name, end, logs)
	}
	execs(t, n, name, rows)
	eventually(t.Context(), t, "the kubelet knows what the pod has written", func(ctx context.Context) (bool, string) {
		used, err := written(ctx, n, name+"-localhost", "layer")
		rows["figure"] = fmt.Sprint(used >= 300000000 && used < 400000000)
		return used >= 300000000, fmt.Sprint(used, err)
	})
	return rows
}

// searched are the words of started that a message has.
func searched(message string) string {
	var has []string
	for _, w := range started {
		if strings.Contains(message, w) {
			has = append(has, w)
		}
	}
	return strings.Join(has, ", ")
}

// besideRows are the rows in words.
var besideRows = map[string]string{
	"absent":            "a command that is absent",
	"absent in an exec": "a command of an exec that is absent",
	"directory":         "a command that is a directory",
	"execs at once":     "40 execs at once",
	"figure":            "the kubelet's figure for 300 MB in the writable layer is 300 to 400 MB",
	"image":             "an image volume of 40 MiB and 9000 files",
	"layer":             "300 MB in the writable layer",
	"limits":            "limits that nobody asked for (`ulimit -a`, `-Ha`)",
	"names":             "odd names, owners and times of a hostPath's files; `/dev/null` as one",
	"oom":               "20 MiB of memory, more wanted",
	"outputs":           "300 lines on each of stdout and stderr, in their order",
	"relative":          "a command without a path that is absent",
	"rights":            "devices and interfaces of a privileged container",
	"routes":            "rules, a second table and blackhole routes of a network plug-in",
	"text":              "a command that is a text file",
	"umask":             "umask of an exec",
}

// besidePage is the comparison as a page of docs/conformance.
func besidePage(runc, coco map[string]string) string {
	var b strings.Builder
	intro := suite.Intro("make k8s-beside", "What users of Kubernetes met ([boundaries](../decisions/boundaries.md), C), "+
		"row by row, under a kubelet of Kubernetes "+kube.Version+" with containerd "+primary+". The kubelet evicts no "+
		"static pod; `TestPodsOverTheirLimitsAreEvictedAlone` shows limits of ephemeral-storage in a cluster")
	fmt.Fprintf(&b, "# A pod under runc and under coco\n\n%s\n\n| row | runc | coco |\n|---|---|---|\n", intro)
	cell := func(s string) string {
		s = strings.NewReplacer("|", "/", "\n", "; ").Replace(strings.TrimSuffix(strings.TrimSpace(s), "<nil>"))
		return strings.Join(strings.Fields(s), " ")
	}
	for _, row := range slices.Sorted(maps.Keys(runc)) {
		of, ours := cell(runc[row]), cell(coco[row])
		if ours == of {
			ours = "the same"
		}
		words := besideRows[row]
		if words == "" {
			words = row
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", words, of, ours)
	}
	return b.String()
}

// counts says whether the lines of one output are in the order in which they were written, and all there.
func counts(logs, which string) bool {
	next := 0
	for line := range strings.Lines(logs) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), which+" "); ok {
			if n != fmt.Sprint(next) {
				return false
			}
			next++
		}
	}
	return next == 300
}

// execs runs commands in the container that stays.
func execs(t *testing.T, n *kube.Node, name string, rows map[string]string) {
	t.Helper()
	said := func(cmd string) string {
		out, err := n.RunIn(t.Context(), name, "layer", cmd)
		if err != nil {
			return "refused: " + searched(err.Error())
		}
		return strings.TrimSpace(out)
	}
	rows["umask"] = said("sh -c umask")
	rows["absent in an exec"] = said("nosuchprogram")
	const many = 40
	answers := make([]string, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() { answers[i] = said("echo n") })
	}
	all.Wait()
	rows["execs at once"] = strings.Join(answers, "")
}

// written is the kubelet's figure for a container's writable layer.
func written(ctx context.Context, n *kube.Node, pod, container string) (int64, error) {
	data, err := n.Summary(ctx)
	if err != nil {
		return 0, err
	}
	var summary struct {
		Pods []struct {
			PodRef     struct{ Name string }
			Containers []struct {
				Name   string
				Rootfs struct{ UsedBytes int64 }
			}
		}
	}
	if err := json.Unmarshal(data, &summary); err != nil {
		return 0, err
	}
	for _, p := range summary.Pods {
		for _, k := range p.Containers {
			if p.PodRef.Name == pod && k.Name == container {
				return k.Rootfs.UsedBytes, nil
			}
		}
	}
	return 0, nil
}

// atLeast returns the lines of want that got has too.
func atLeast(want, got string) string {
	var both []string
	for _, line := range strings.Split(want, "\n") {
		if strings.Contains("\n"+got+"\n", "\n"+line+"\n") {
			both = append(both, line)
		}
	}
	return strings.Join(both, "\n")
}

// besideFiles is a directory with names, owners and times that hosts have.
func besideFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"caf\xe9", "x.coco-part", strings.Repeat("n", 255), "owned"} {
		path := filepath.Join(dir, name)
		when := []unix.Timespec{{Sec: 1000000000, Nsec: 123456789}, {Sec: 1000000000, Nsec: 123456789}}
		if err := errors.Join(os.WriteFile(path, []byte("text\n"), 0o640), os.Chown(path, 1<<32-2, 1<<31),
			unix.UtimesNanoAt(unix.AT_FDCWD, path, when, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// nftables is a directory with the host's iptables for nftables and all that it loads.
func nftables(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := exec.LookPath("xtables-nft-multi")
	if err != nil {
		absent(t, err.Error())
	}
	libs, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	for _, from := range append(regexp.MustCompile(`/\S+`).FindAllString(string(libs), -1), program) {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(from)), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// besideImage is the archive of an image that is larger than what coco copies, in size and in number of files.
func besideImage(t *testing.T) string {
	t.Helper()
	var files []testimage.File
	for i := range 9000 {
		files = append(files, testimage.File{Path: fmt.Sprintf("many/%d", i), Mode: 0o644, Data: []byte("x")})
	}
	files = append(files, testimage.File{Path: "model", Mode: 0o600, Data: make([]byte, 40<<20)})
	archive := filepath.Join(t.TempDir(), "model.tar")
	if err := (testimage.Image{}).WithLayer(files...).WriteFile(archive, "docker.io/library/model:t"); err != nil {
		t.Fatal(err)
	}
	return archive
}
