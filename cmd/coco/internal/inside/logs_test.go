// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package inside

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/cmd/coco/internal/pods"
)

const kubeLines = `2026-11-30T10:00:00.1Z stdout F one
2026-11-30T10:00:01.1Z stderr F two
2026-11-30T10:00:02.1Z stdout P thr
2026-11-30T10:00:02.2Z stdout F ee
`

// kubeText is a pod of Kubernetes with an id of its own.
var kubeText = strings.Replace(text, `pod_namespace="shop"`, `pod_namespace="shop",pod_uid="u-1"`, 1)

func keepKubeLogs(t *testing.T) (dir string) {
	t.Helper()
	old := podLogs
	podLogs = t.TempDir()
	t.Cleanup(func() { podLogs = old })
	dir = filepath.Join(podLogs, "shop_web_u-1", "nginx")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLogsOfKubernetes(t *testing.T) {
	config, _ := servePod(t, kubeText)
	_, _, err := both(t.Context(), t, LogsCommand(), "", "--config", config, "web")
	if err == nil || !strings.Contains(err.Error(), "kubectl logs") {
		t.Errorf("logs without a file = %v", err)
	}
	dir := keepKubeLogs(t)
	_, _, err = both(t.Context(), t, LogsCommand(), "", "--config", config, "web")
	if err == nil || !strings.Contains(err.Error(), "no log") {
		t.Errorf("logs of an empty directory = %v", err)
	}
	write(t, filepath.Join(dir, "0.log"), "2026-11-30T10:00:00.1Z stdout F before the restart\n")
	write(t, filepath.Join(dir, "10.log"), kubeLines)
	write(t, filepath.Join(dir, "9.log.20261130"), "")
	out, errs, err := both(t.Context(), t, LogsCommand(), "", "--config", config, "web")
	if out != "one\nthree\n" || errs != "two\n" || err != nil {
		t.Errorf("logs = %q, %q, %v", out, errs, err)
	}
	out, errs, err = both(t.Context(), t, LogsCommand(), "", "--config", config, "web", "--tail", "2", "--timestamps")
	if !strings.HasPrefix(out, "2026-11-30T10:00:02.1Z thr") || errs != "" || err != nil {
		t.Errorf("logs --tail 2 = %q, %q, %v", out, errs, err)
	}
	out, _, err = both(t.Context(), t, LogsCommand(), "", "--config", config, "web", "--tail", "0")
	if out != "" || err != nil {
		t.Errorf("logs --tail 0 = %q, %v", out, err)
	}
	write(t, filepath.Join(dir, "11.log"), "no such format\n")
	if _, _, err = both(t.Context(), t, LogsCommand(), "", "--config", config, "web"); err == nil {
		t.Error("a line of another format is printed")
	}
}

// Names come from annotations, which other clients of containerd set as they like.
func TestLogsStayBelowTheKubeletsDirectory(t *testing.T) {
	for _, t2 := range []pods.Target{
		{Pod: "shop/web", PodUID: "../../etc", Container: "nginx"},
		{Pod: "shop/", PodUID: "u", Container: "nginx"},
		{Pod: "shop/we*", PodUID: "u", Container: "nginx"},
		{Pod: "shop/web", PodUID: "u", Container: ".."},
	} {
		if path, err := kubeLog(t2); err == nil {
			t.Errorf("the log of %v is %s", t2, path)
		}
	}
}

func TestLogsAreFollowedAcrossARotation(t *testing.T) {
	config, _ := servePod(t, kubeText)
	path := filepath.Join(keepKubeLogs(t), "0.log")
	write(t, path, kubeLines)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := LogsCommand()
	cmd.SetOut(w)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"--config", config, "web", "--follow", "--tail", "1"})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("followed %q, %v, want %q", got, err, want)
		}
	}
	expect("ee\n")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("2026-11-30T10:00:03.1Z stdout F four\n"); err != nil {
		t.Fatal(err)
	}
	expect("four\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("2026-11-30T10:00:03.1Z stdout F five\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, "2026-11-30T10:00:04.1Z stdout F six\n")
	expect("five\nsix\n")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("logs --follow = %v", err)
	}
}

func TestLogsOfCtr(t *testing.T) {
	config, s := servePod(t, strings.ReplaceAll(text, "k8s.io", "default"))
	file := filepath.Join(t.TempDir(), "log")
	write(t, file, "a\nb\nc")
	s.stdout = "file://" + file
	out, _, err := both(t.Context(), t, LogsCommand(), "", "--config", config, "web", "--tail", "2")
	if out != "b\nc" || err != nil {
		t.Errorf("logs = %q, %v", out, err)
	}
	for stdout, want := range map[string]string{
		"": "without one", "/run/fifo": "--log-uri", "binary:///usr/bin/nerdctl?a=b": "nerdctl logs",
	} {
		s.stdout = stdout
		_, _, err := both(t.Context(), t, LogsCommand(), "", "--config", config, "web")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("logs of an output at %q = %v, want %q", stdout, err, want)
		}
	}
}

func TestLogsOfDocker(t *testing.T) {
	config, _ := servePod(t, strings.ReplaceAll(text, "k8s.io", "moby"))
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	frame := func(kind byte, text string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, uint32(len(text))), text...)
	}
	status, asked := http.StatusOK, ""
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		w.WriteHeader(status)
		_, _ = w.Write(append(frame(1, "out\n"), frame(2, "err\n")...))
	})}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	old := pods.DockerSocket
	pods.DockerSocket = filepath.Join(dir, "s")
	t.Cleanup(func() { pods.DockerSocket = old })

	out, errs, err := both(t.Context(), t, LogsCommand(), "", "--config", config, "web", "--tail", "5")
	if out != "out\n" || errs != "err\n" || err != nil || asked != "/containers/c1/logs?stderr=1&stdout=1&tail=5" {
		t.Errorf("logs = %q, %q, %v, asked for %s", out, errs, err, asked)
	}
	status = http.StatusInternalServerError
	if _, _, err = both(t.Context(), t, LogsCommand(), "", "--config", config, "web"); err == nil ||
		!strings.Contains(err.Error(), "logging driver") {
		t.Errorf("logs that Docker does not have = %v", err)
	}
}
