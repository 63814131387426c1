// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
	"github.com/coco-shim/coco/trust/workload"
)

// workloadInitdata opens everything to container "a".
func workloadInitdata(t *testing.T, aa string) string {
	t.Helper()
	const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	p := &policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: new("h")}},
		Containers: []policy.Container{{
			Name: "a", Kind: policy.App, Restart: policy.Never,
			Image:   policy.Image{Manifest: "sha256:" + hash, Layers: []string{hash}},
			Process: policy.Process{Args: []string{"/a"}, Cwd: "/"},
			Linux:   policy.Linux{Namespaces: []string{"mount"}, Seccomp: []string{policy.NoSeccomp}},
			Workload: policy.Workload{
				Resources: []string{"kbs:///r/t/a"}, Calls: []string{policy.CallInfo, policy.CallToken, policy.CallEvidence},
			},
		}},
	}
	text, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{policy.FileName: string(text), initdata.FileAA: aa})
	if err != nil {
		t.Fatal(err)
	}
	return string(d.Text)
}

// request passes a connection of container "a" on, and asks over it.
func request(t *testing.T, way *net.UnixConn, path string) string {
	t.Helper()
	ours, theirs, err := fdpass.Pair("client", unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := fdpass.Send(way, []byte("a"), theirs); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	fmt.Fprintf(ours, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(ours), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}

// Without a broker a workload gets evidence of the guest's own platform, and the reason why there is no secret.
// Evidence that proves nothing needs the word insecure in initdata, also here.
func TestWorkloadsWithoutABroker(t *testing.T) {
	bound := workload.ReportData("a", []byte("x"))
	proof := "200 " + `{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString(bound[:]) + `"}`
	for aa, want := range map[string]string{"insecure = true\n": proof, "": "500 [no-evidence]"} {
		way, theirs, err := fdpass.Pair("agent", unix.SOCK_SEQPACKET)
		if err != nil {
			t.Fatal(err)
		}
		agent, conn := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- Run(t.Context(), conn, Devices{API: func() *os.File { return theirs }}) }()
		if err := wire.Write(agent, wire.Setup{
			Initdata: workloadInitdata(t, aa), TEE: "sample", Workload: true,
		}); err != nil {
			t.Fatal(err)
		}
		hello(t, agent)
		for path, want := range map[string]string{
			"/aa/evidence?runtime_data=x": want, "/cdh/resource/r/t/a": "500 [config] initdata names no key broker",
			"/aa/token?token_type=kbs": "500 [config] initdata names no key broker",
		} {
			if got := request(t, way, path); !strings.HasPrefix(got, want) {
				t.Errorf("with %q, %s: %s, want %s", aa, path, got, want)
			}
		}
		_, _ = agent.Close(), way.Close()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}
