// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// readPCRs is a shell's command that prints the first PCRs of the SHA-256 bank.
const readPCRs = "for i in 0 1 2 3 4 5 6 7 8 9 10 11; do cat /sys/class/tpm/tpm0/pcr-sha256/$i; done"

// vtpmConfig is a configuration of platform vtpm with initdata.
func vtpmConfig(t *testing.T, initdata string) string {
	t.Helper()
	testvm.Need(t, testvm.Swtpm, testvm.OVMF)
	ca := filepath.Join(t.TempDir(), "ca")
	coco(t, "node", "tpm-ca", "--dir", ca)
	return vtpmConfigBy(t, initdata, ca)
}

// TestFirmwareMeasuresTheBoot: a pod on platform vtpm finds in its TPM what was booted, and its policy holds.
func TestFirmwareMeasuresTheBoot(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	command := []string{"sh", "-c", readPCRs}
	p := policyFor(t, specOf(t, d, command...))
	r := runWith(t, d, initdataWith(t, encoded(t, p)), "", command...) // on the plain platform, where it is quick
	hash := learned.FindStringSubmatch(r.Stderr)
	if hash == nil {
		t.Fatalf("the denial does not tell the layer: %s", r.Stderr)
	}
	p.Containers[0].Image.Layers[0] = hash[1]
	initdata := initdataWith(t, encoded(t, p))
	config, id := vtpmConfig(t, initdata), newID(t)
	t.Cleanup(func() { remove(t, d, id) })
	r = ctr(t, d, append([]string{
		"run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image, id,
	}, command...)...)
	if r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	pcrs := strings.Fields(strings.ToLower(r.Stdout))
	if len(pcrs) != 12 {
		t.Fatalf("%d PCRs: %s", len(pcrs), r.Stdout)
	}
	sum := sha256.Sum256([]byte(initdata))
	sum = sha256.Sum256(append(make([]byte, len(sum)), sum[:]...))
	if want := hex.EncodeToString(sum[:]); pcrs[8] != want {
		t.Errorf("PCR 8 is %s, want %s of the initdata", pcrs[8], want)
	}
	out := coco(t, "measure", "vtpm", "--config", config)
	compared := 0
	for line := range strings.Lines(out) {
		number, want, _ := strings.Cut(strings.TrimSpace(line), "=")
		if n, err := strconv.Atoi(number); err == nil && n < len(pcrs) {
			compared++
			if pcrs[n] != want {
				t.Errorf("PCR %d is %s in the guest, %s by coco measure vtpm", n, pcrs[n], want)
			}
		}
	}
	if compared != 10 { // all but 0 and 10
		t.Errorf("%d PCRs were predicted: %s", compared, out)
	}
}

// TestATPMEndsWithItsShim kills the shim while the firmware runs.
func TestATPMEndsWithItsShim(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config, id := vtpmConfig(t, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"), newID(t)
	t.Cleanup(func() { remove(t, d, id) })
	f, err := d.Follow()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), perCommand)
	defer cancel()
	done := make(chan harness.Result, 1)
	go func() {
		done <- d.Ctr(ctx, "run", "-d", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image, id,
			"true")
	}()
	if _, err := f.Until(ctx, func(l string) bool {
		return strings.Contains(l, id) && strings.Contains(l, "step=vmm ")
	}); err != nil {
		t.Fatal(err, <-done)
	}
	shim, _, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	for _, pid := range harness.Children(shim) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, strings.TrimSpace(string(name)))
	}
	if !strings.Contains(fmt.Sprint(programs), "swtpm") {
		t.Errorf("the shim's processes are %v", programs)
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.Code == 0 {
		t.Errorf("%+v", r)
	}
}
