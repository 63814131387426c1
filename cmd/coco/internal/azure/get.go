// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/guest"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/maa"
	"github.com/coco-shim/coco/azure/skr"
	"github.com/coco-shim/coco/azure/thim"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

// getOptions are the flags of coco azure get.
type getOptions struct {
	maa, ca, wrap       string
	metadata, certCache string
	workload            bool
	clientID            string
	program             string
	timeout             time.Duration
	attempts            int
	out                 string

	now func() time.Time
}

func getCommand() *cobra.Command {
	o := getOptions{now: time.Now}
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Get a key from a vault, as a guest does",
		Long: "Has this machine's processor sign a new key (SEV-SNP), gets a token of the attestation service for it,\n" +
			"checks the token, and has the vault release KEY, https://VAULT/keys/NAME or /keys/NAME/VERSION. Prints JSON\n" +
			"with the key: \"k\" for bytes, \"pkcs8\" for RSA and EC.\n\n" +
			"The bearer token comes from the metadata service, or with --workload-identity from Entra by the variables\n" +
			"AZURE_AUTHORITY_HOST, AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE.\n\n" +
			"--evidence-program gets the 64 bytes of report data as hexadecimal digits and prints evidence of SNP in CoCo's\n" +
			"JSON, or a report.",
		Example: "  coco azure get --maa https://sharedeus.eus.attest.azure.net https://shop.vault.azure.net/keys/pay",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.maa, "maa", "", "the attestation service, such as https://sharedeus.eus.attest.azure.net")
	f.StringVar(&o.ca, "ca", "", "trust these CAs (PEM) instead of the system's")
	f.StringVar(&o.wrap, "wrap", string(kwp.RSAAES256), "wrapping: "+string(kwp.RSAAES)+", "+string(kwp.RSAAES256)+" or "+
		string(kwp.RSAAES384))
	f.StringVar(&o.metadata, "metadata", entra.MetadataURL, "the metadata service")
	f.StringVar(&o.certCache, "cert-cache", "", "certificate cache that is asked after the host")
	f.BoolVar(&o.workload, "workload-identity", false, "get the bearer token from Entra")
	f.StringVar(&o.clientID, "client-id", "", "managed identity, where the machine has several")
	f.StringVar(&o.program, "evidence-program", "", "program that makes the evidence")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to try")
	f.IntVar(&o.attempts, "attempts", 4, "requests for one answer")
	f.StringVarP(&o.out, "out", "o", "", "write to this file, which only its owner may read, instead of stdout")
	cli.Require(cmd, "maa")
	return cmd
}

// released is the command's output. It has one of K and PKCS8.
type released struct {
	KID   string `json:"kid"`
	KTY   string `json:"kty"`
	K     string `json:"k,omitempty"`     // base64url
	PKCS8 string `json:"pkcs8,omitempty"` // PEM
	Clock string `json:"clock"`
}

func (o *getOptions) run(cmd *cobra.Command, text string) error {
	id, err := akv.ParseKeyID(text)
	if err != nil {
		return err
	}
	g, err := o.guest()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	k, err := g.Release(ctx, id, kwp.Scheme(o.wrap))
	g.MAA.HTTP.HTTP.CloseIdleConnections()
	if err != nil {
		return err
	}
	defer k.Wipe()
	out := released{KID: k.KID, KTY: k.Kind, Clock: k.Clock}
	if k.Kind == "oct" {
		out.K = base64.RawURLEncoding.EncodeToString(k.Material)
	} else {
		out.PKCS8 = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k.Material}))
	}
	if o.out == "" {
		return show.JSON(cmd.OutOrStdout(), out)
	}
	var b bytes.Buffer
	if err := show.JSON(&b, out); err != nil {
		return err
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	return errors.Join(err, f.Close())
}

// guest makes the clients that the flags describe. They share one HTTP client.
func (o *getOptions) guest() (*skr.Guest, error) {
	var roots []*x509.Certificate
	var pool *x509.CertPool
	if o.ca != "" {
		var err error
		if roots, err = certificates(o.ca); err != nil {
			return nil, fmt.Errorf("--ca %s: %w", o.ca, err)
		}
		pool = x509.NewCertPool()
		for _, c := range roots {
			pool.AddCert(c)
		}
	}
	h := azhttp.New(roots)
	client := func(name string) *azhttp.Client {
		return &azhttp.Client{Service: name, HTTP: h, Attempts: o.attempts, Now: o.now}
	}
	var tokens akv.Tokens = entra.Metadata{Client: client("metadata service"), URL: o.metadata, ClientID: o.clientID}
	if o.workload {
		file := os.Getenv("AZURE_FEDERATED_TOKEN_FILE")
		tokens = entra.Workload{
			Client: client("entra"), Authority: os.Getenv("AZURE_AUTHORITY_HOST"), Tenant: os.Getenv("AZURE_TENANT_ID"),
			ClientID: os.Getenv("AZURE_CLIENT_ID"), Assertion: func() ([]byte, error) { return os.ReadFile(file) },
		}
	}
	store := &thim.Store{Sources: []thim.Source{thim.Host{Client: client("THIM"), URL: o.metadata}}}
	if o.certCache != "" {
		store.Sources = append(store.Sources, thim.Cache{Client: client("certificate cache"), URL: o.certCache})
	}
	return &skr.Guest{
		Report: o.report, Certificates: store, MAA: &maa.Client{HTTP: client("attestation service"), Issuer: o.maa},
		Vault: &akv.Client{HTTP: client("vault"), Tokens: tokens, Roots: pool},
	}, nil
}

// report returns a report of this machine, or of the program.
func (o *getOptions) report(ctx context.Context, data [64]byte) ([]byte, error) {
	var text []byte
	if o.program != "" {
		var errs bytes.Buffer
		c := exec.CommandContext(ctx, o.program, hex.EncodeToString(data[:]))
		c.Stderr = &errs
		var err error
		if text, err = c.Output(); err != nil {
			return nil, fmt.Errorf("--evidence-program %s: %w: %.200s", o.program, err, errs.String())
		}
	} else {
		a, err := guest.New("/", "snp")
		if err != nil {
			return nil, err
		}
		if text, err = a.Evidence(ctx, data[:]); err != nil {
			return nil, err
		}
	}
	ev, err := snp.ParseEvidence(text)
	return ev.Report, err
}

// certificates reads PEM.
func certificates(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return azhttp.Certificates(b)
}
