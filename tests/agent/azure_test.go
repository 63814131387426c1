// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/internal/initdata"
	plan "github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
)

// azureKeys are the keys of TestAzureEndpoints, each with the type of attestation that its release policy wants.
var azureKeys = map[string]string{"a": "insecure", "b": "insecure", "real": "sevsnpvm"}

// startAzure starts fakes that take evidence which proves nothing, with keys in the vault.
func startAzure(t *testing.T) *fake.Fake {
	t.Helper()
	f, err := fake.New(fake.Options{Host: userHost, AllowInsecure: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(f.CA())
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: userHost}}}
	defer h.CloseIdleConnections()
	here := func(s fake.Service) string { return strings.Replace(f.URL(s), userHost, "127.0.0.1", 1) }
	c := &azhttp.Client{Service: "fakes", HTTP: h}
	token, err := entra.Metadata{Client: c, URL: here(fake.Metadata)}.Token(t.Context(), "https://"+userHost)
	if err != nil {
		t.Fatal(err)
	}
	for name, kind := range azureKeys {
		rules := fmt.Sprintf(`{"version":"1.0.0","anyOf":[{"authority":%q,"allOf":[{"claim":"x-ms-attestation-type",`+
			`"equals":%q}]}]}`, f.URL(fake.MAA), kind)
		_, err := c.Do(t.Context(), azhttp.Request{
			Method: http.MethodPut, URL: here(fake.Vault) + "/keys/" + name + "?api-version=7.4",
			Header: map[string]string{"Authorization": "Bearer " + token},
			Body: fmt.Appendf(nil, `{"key":{"kty":"oct","k":%q},"attributes":{"exportable":true},"release_policy":{"data":%q}}`,
				azureKey(name), base64.RawURLEncoding.EncodeToString([]byte(rules))),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// azureKey is a key of 16 bytes, in base64url.
func azureKey(name string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%-16s", "secret of "+name)[:16])
}

// hostOf is the host and port of a fake, as a guest sees it.
func hostOf(t *testing.T, f *fake.Fake, s fake.Service) string {
	t.Helper()
	u, err := url.Parse(f.URL(s))
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// azurePolicy opens key a and real to container a, key b to b, and something else to silent.
func azurePolicy(t *testing.T, layer plan.Attached, f *fake.Fake) *initdata.Document {
	t.Helper()
	p := &policy.Policy{
		APIVersion: policy.APIVersion,
		Pod: policy.Pod{
			Hostname: policy.Value{Is: new("pod-host")}, WorkloadPort: 8081,
			Network: policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true},
		},
	}
	for _, name := range []string{"a", "b", "silent"} {
		c := policytest.Container(name, []string{layer.Hex()}, nil, specFor(name, slices.Clone(asking[name])...), false)
		c.Restart = policy.Never
		c.Allow = policy.Capabilities{Logs: true, Stdin: true}
		p.Containers = append(p.Containers, c)
	}
	maa, vault := hostOf(t, f, fake.MAA), hostOf(t, f, fake.Vault)
	p.Containers[0].Workload.Azure = policy.Azure{
		Keys:  []policy.AzureKey{{KID: "a", Vault: vault, MAA: maa}, {KID: "real", Vault: vault, MAA: maa}},
		Calls: []string{policy.AzureRaw, policy.AzureOwnKeys}, MAA: []string{maa},
	}
	p.Containers[1].Workload.Azure.Keys = []policy.AzureKey{{KID: "b", Vault: vault, MAA: maa}}
	p.Containers[2].Workload.Calls = []string{policy.CallInfo}
	text, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName: string(text),
		initdata.FileAzure: fmt.Sprintf("insecure = true\nmetadata = %q\nca = '''\n%s'''\n", f.URL(fake.Metadata),
			f.CA()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bootAzure boots a guest that reaches the fakes over its pod's network.
func bootAzure(t *testing.T, f *fake.Fake) *pinned {
	t.Helper()
	p := bootTrust(t, func(l plan.Attached) *initdata.Document { return azurePolicy(t, l, f) },
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac="+userMAC)
	ctx := within(t, 30*time.Second)
	if _, err := p.agent.UpdateInterface(ctx, &pb.UpdateInterfaceRequest{Interface: &types.Interface{
		Device: "eth0", Name: "eth0", HwAddr: userMAC, Mtu: 1500,
		IPAddresses: []*types.IPAddress{{Family: types.IPFamily_v4, Address: userGuest, Mask: "24"}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{Hostname: "pod-host", SandboxId: "pod"}); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAzureEndpoints: in a real guest, container a gets its key from a vault over the port that the policy names: the
// guest attests at the attestation service and releases, over the pod's network. b cannot get that key, name another
// vault or service, or use the other calls; a container whose policy is silent on Azure, and the host, get nothing.
func TestAzureEndpoints(t *testing.T) {
	f := startAzure(t)
	p := bootAzure(t, f)
	shells := map[string]*shell{}
	for name := range asking {
		shells[name] = p.beginAsking(t, name, "id-"+name)
	}
	maa, vault := hostOf(t, f, fake.MAA), hostOf(t, f, fake.Vault)
	release := func(maa, vault, kid string) string {
		return fmt.Sprintf("/key/release POST '{%q:%q,%q:%q,%q:%q}'", "maa_endpoint", maa, "akv_endpoint", vault, "kid", kid)
	}
	runtime := func(with string) string {
		return "POST '{" + with + `"runtime_data":"` + base64.StdEncoding.EncodeToString([]byte(`{"keys":[]}`)) + `"}'`
	}
	const socket, port = "unix " + contract.WorkloadSocket, "tcp4 127.0.0.1:8081"
	for _, tc := range []struct{ container, way, ask, want string }{
		{"a", port, "/status", `200 {"message":"Status OK"}`},
		{"a", port, release(maa, vault, "b"), `403 {"error":"secure key release failed: the policy does not open key \"b\"`},
		{"a", port, "/attest/raw " + runtime(""), `501 {"error":"there is no report of SEV-SNP`},
		{"a", port, "/attest/maa " + runtime(`"maa_endpoint":"`+maa+`",`), `200 {"token":"ey`},
		{"a", port, release(maa, vault, "a"), `200 {"key":"{\"kty\":\"oct\",\"k\":\"` + azureKey("a") + `\"}"}`},
		{"b", port, release(maa, vault, "a"), `does not open key \"a\"`},
		{"b", port, release(maa, "169.254.169.254", "b"), `does not open key \"b\" of \"169.254.169.254\"`},
		{"b", port, "/attest/maa " + runtime(`"maa_endpoint":"`+maa+`",`), "404 "},
		{"a", socket, release("https://"+maa+"/", vault, "real"), "x-ms-attestation-type equals sevsnpvm: it is insecure"},
		{"silent", socket, release(maa, vault, "a"), "404 "},
		{"silent", port, "/status", "404 "},
	} {
		began := time.Now()
		got := shells[tc.container].ask(t, "ask "+tc.way+" "+tc.ask)
		t.Logf("%s asks %s\n  after %v: %s", tc.container, tc.ask, time.Since(began).Round(time.Millisecond), got)
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s asks over %s for %s: %s; want %q", tc.container, tc.way, tc.ask, got, tc.want)
		}
	}
	if answer := p.greet(t, contract.PortForward, "8081\n"); !strings.Contains(answer, "denied [capability] port") {
		t.Errorf("the host connects to the endpoints' port: %q", answer)
	}
}
