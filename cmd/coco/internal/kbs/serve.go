// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/broker"
	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/broker/token"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tdx"
)

// Files of a broker's directory.
const (
	fileState      = "state"
	fileKey        = "state.key"
	fileAudit      = "audit.log"
	fileCert       = "tls.crt"
	fileTLSKey     = "tls.key"
	dirCollateral  = "collateral"
	maxListAge     = 24 * time.Hour
	fetchTimeout   = 30 * time.Second
	maxConnections = 4096
)

// adminTokens says what happens to tokens of administrators at the start.
type adminTokens struct{ newToken, revoke bool }

// serveOptions are the flags of coco kbs serve.
type serveOptions struct {
	adminTokens
	dir, listen, url        string
	passphraseFile, keyFile string
	config                  string
	fetch, allowExpired     bool
	tpmCA, selection        string
	allowInsecure           bool

	verifier *snp.Verifier // nil: AMD's roots
	now      func() time.Time
	patience time.Duration // for the body of a request
}

func serveCommand() *cobra.Command {
	o := serveOptions{now: time.Now, patience: 30 * time.Second}
	cmd := &cobra.Command{
		Use:   "serve DIR",
		Short: "Run a key broker",
		Long: "Runs a key broker on the directory that coco kbs init has made. It answers CoCo's KBS protocol over TLS.\n\n" +
			"The first start prints a token with role admin; --new-admin-token prints another one. Evidence of SEV-SNP and " +
			"TDX\n" +
			"is verified with the documents in DIR/collateral; --fetch gets missing ones from AMD and Intel. Evidence of a " +
			"TPM\n" +
			"needs --tpm-ca. Nothing is released before reference values say which guests are trusted.",
		Example: "  coco kbs init /var/lib/coco-kbs --host kbs.example\n" +
			"  coco kbs serve /var/lib/coco-kbs --url https://kbs.example:8080",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.dir = args[0]
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address to listen at")
	f.StringVar(&o.url, "url", "", "the broker's URL as others see it, the issuer of its tokens (default https://ADDRESS)")
	f.StringVar(&o.keyFile, "key-file", "", "key of the store (default DIR/"+fileKey+")")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", "file with the store's passphrase, instead of a key")
	f.StringVar(&o.config, "config", "", "TOML with further issuers of administrators' tokens and their roles")
	f.BoolVar(&o.fetch, "fetch", false, "ask AMD and Intel for documents that DIR/"+dirCollateral+" lacks")
	f.BoolVar(&o.allowExpired, "allow-expired", false, "accept documents of AMD and Intel whose validity has ended")
	f.StringVar(&o.tpmCA, "tpm-ca", "", "file with the CAs whose certificate on an attestation key proves its TPM")
	f.StringVar(&o.selection, "pcr-selection", "sha256:0-23", "bank and PCRs that quotes of TPMs must cover")
	f.BoolVar(&o.allowInsecure, "allow-insecure", false,
		"accept evidence of type sample, which proves nothing: for tests only")
	f.BoolVar(&o.newToken, "new-admin-token", false, "print a new token with role admin")
	f.BoolVar(&o.revoke, "revoke-admin-tokens", false,
		"make all tokens of administrators invalid that the broker has printed, and print a new one")
	return cmd
}

func (o *serveOptions) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(o.dir, fileCert), filepath.Join(o.dir, fileTLSKey))
	if err != nil {
		return fmt.Errorf("certificate of the broker: %w; coco kbs init makes one", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	defer l.Close()
	if o.url == "" {
		o.url = "https://" + l.Addr().String()
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	s, first, err := o.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	a, err := o.openAudit(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := o.broker(ctx, s, a, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if first || o.newToken || o.revoke {
		t, err := b.AdminToken(broker.AdminRole)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "Token with role admin, which is not shown again:\n%s\n", t)
	}
	if o.allowInsecure {
		log.Warn("insecure: evidence of type sample is accepted, which anyone can make")
	}
	log.Info("key broker", "address", l.Addr().String(), "url", o.url)
	return o.serve(ctx, newLimited(l, maxConnections), b, cert, log)
}

// serve answers until ctx ends, then lets requests finish.
func (o *serveOptions) serve(
	ctx context.Context, l net.Listener, b *broker.Broker, cert tls.Certificate, log *slog.Logger,
) error {
	srv := &http.Server{
		Handler: b.Handler(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: o.patience, WriteTimeout: 60 * time.Second,
		IdleTimeout: 60 * time.Second, MaxHeaderBytes: broker.MaxHeader,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}},
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		tick := time.NewTicker(time.Hour)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := b.Rotate(); err != nil {
					log.Error("rotation of the signing key", "error", err)
				}
			case <-gctx.Done():
				end, cancel := context.WithTimeout(context.WithoutCancel(gctx), 10*time.Second)
				defer cancel()
				return errors.Join(srv.Shutdown(end), srv.Close())
			}
		}
	})
	return g.Wait()
}

// openStore opens the store, and tells whether it is new.
func (o *serveOptions) openStore() (*store.Store, bool, error) {
	secret, err := o.secret()
	if err != nil {
		return nil, false, err
	}
	path := filepath.Join(o.dir, fileState)
	_, err = os.Stat(path)
	first := errors.Is(err, os.ErrNotExist)
	s, err := store.Open(path, secret, o.now)
	return s, first, err
}

func (o *serveOptions) secret() (store.Secret, error) {
	if o.passphraseFile != "" {
		if o.keyFile != "" {
			return store.Secret{}, errors.New("--key-file and --passphrase-file exclude each other")
		}
		b, err := readFile(o.passphraseFile)
		if err != nil {
			return store.Secret{}, fmt.Errorf("--passphrase-file: %w", err)
		}
		return store.Secret{Passphrase: []byte(strings.TrimRight(string(b), "\r\n"))}, nil
	}
	path := o.keyFile
	if path == "" {
		path = filepath.Join(o.dir, fileKey)
	}
	b, err := readFile(path)
	if err != nil {
		return store.Secret{}, fmt.Errorf("key of the store: %w", err)
	}
	return store.Secret{KeyFile: b}, nil
}

// openAudit opens the log, and holds it to what the store remembers of it.
func (o *serveOptions) openAudit(s *store.Store) (*audit.Log, error) {
	path := filepath.Join(o.dir, fileAudit)
	h, ok, err := broker.Anchor(s)
	if err != nil {
		return nil, err
	}
	if ok {
		if _, err := verifyAudit(path, h); err != nil {
			return nil, err
		}
	}
	return audit.Open(path, o.now)
}

// verifyAudit verifies a log file.
func verifyAudit(path string, known ...audit.Head) (audit.Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return audit.Report{}, err
	}
	defer f.Close()
	r, err := audit.Verify(f, known...)
	if err != nil {
		err = fmt.Errorf("audit log %s: %w", path, err)
	}
	return r, err
}

func (o *serveOptions) broker(
	ctx context.Context, s *store.Store, a *audit.Log, log *slog.Logger,
) (*broker.Broker, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("--url %q is not one such as https://kbs.example:8080", o.url)
	}
	v, err := o.verifiers()
	if err != nil {
		return nil, err
	}
	cfg := broker.Config{
		Store: s, Audit: a, Evidence: v, Issuer: strings.TrimSuffix(o.url, "/"), Log: log, Now: o.now,
		RevokeAdmins: o.revoke,
	}
	if o.config != "" {
		if cfg.Admins, cfg.Roles, err = readConfig(o.config, o.now); err != nil {
			return nil, fmt.Errorf("--config %s: %w", o.config, err)
		}
	}
	return broker.New(ctx, cfg)
}

func (o *serveOptions) verifiers() (*evidence.Verifiers, error) {
	c := &collateral.Store{
		Dir: filepath.Join(o.dir, dirCollateral), Now: o.now,
		MaxAge: func(r attestation.Request) time.Duration {
			if r.Kind == snp.KindVCEK || r.Kind == snp.KindVLEK || r.Kind == snp.KindChain {
				return 0
			}
			return maxListAge
		},
	}
	if o.fetch {
		c.Service = collateral.Client(fetchTimeout)
	}
	v := &evidence.Verifiers{
		SNP: snp.AMD(), TDXRoot: tdx.IntelRoot(), Collateral: c, AllowExpired: o.allowExpired,
		AllowInsecure: o.allowInsecure, Now: o.now,
	}
	if o.verifier != nil {
		v.SNP = *o.verifier
	}
	var err error
	if v.TPMSelection, err = parseSelection(o.selection); err != nil || o.tpmCA == "" {
		return v, err
	}
	text, err := readFile(o.tpmCA)
	if err != nil {
		return nil, fmt.Errorf("--tpm-ca: %w", err)
	}
	v.TPMRoots = x509.NewCertPool()
	if !v.TPMRoots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--tpm-ca %s: no certificate in PEM", o.tpmCA)
	}
	return v, nil
}

// adminConfig is the file of --config.
type adminConfig struct {
	Issuer []struct {
		Issuer   string `toml:"issuer"`
		Audience string `toml:"audience"`
		JWKS     string `toml:"jwks"` // a file
	} `toml:"issuer"`
	Role []struct {
		Name      string   `toml:"name"`
		Endpoints []string `toml:"endpoints"`
	} `toml:"role"`
}

func readConfig(path string, now func() time.Time) ([]token.Issuer, []broker.Role, error) {
	var c adminConfig
	meta, err := toml.DecodeFile(path, &c)
	if err != nil {
		return nil, nil, err
	}
	if u := meta.Undecoded(); len(u) > 0 {
		return nil, nil, fmt.Errorf("unknown key %s", u[0])
	}
	var issuers []token.Issuer
	for _, i := range c.Issuer {
		text, err := readFile(i.JWKS)
		if err != nil {
			return nil, nil, err
		}
		keys, err := token.ParseSet(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", i.JWKS, err)
		}
		issuers = append(issuers, token.Issuer{
			Name: i.Issuer, Audience: i.Audience, Keys: keys, Algorithms: token.Asymmetric, Now: now,
		})
	}
	var roles []broker.Role
	for _, r := range c.Role {
		roles = append(roles, broker.Role{Name: r.Name, Endpoints: r.Endpoints})
	}
	return issuers, roles, nil
}

func initCommand() *cobra.Command {
	var hosts []string
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make the directory of a key broker",
		Long: "Makes the directory of a key broker with a random key for its store and a certificate that signs itself.\n" +
			"Guests and administrators get the certificate, DIR/" + fileCert + ", which they trust alone. Replace it and\n" +
			"DIR/" + fileTLSKey + " by those of a CA if you have one. Files that are there already are left alone.",
		Example: "  coco kbs init /var/lib/coco-kbs --host kbs.example --host 10.0.0.7",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return initDir(args[0], hosts, time.Now(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVar(&hosts, "host", []string{"localhost", "127.0.0.1"},
		"name or address of the broker (repeatable)")
	return cmd
}

func initDir(dir string, hosts []string, now time.Time, out io.Writer) error {
	if err := os.MkdirAll(filepath.Join(dir, dirCollateral), 0o700); err != nil {
		return err
	}
	key := make([]byte, store.MinKey)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	cert, private, err := selfSigned(hosts, now)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, fileCert)); err == nil {
		cert, private = nil, nil // both or none
	}
	for _, f := range []struct {
		name string
		text []byte
	}{{fileKey, key}, {fileTLSKey, private}, {fileCert, cert}} {
		path := filepath.Join(dir, f.name)
		err := os.ErrExist
		if f.text != nil {
			err = makeFile(path, f.text)
		}
		switch {
		case errors.Is(err, os.ErrExist):
			fmt.Fprintf(out, "%s is there already\n", path)
		case err != nil:
			return err
		default:
			fmt.Fprintf(out, "%s\n", path)
		}
	}
	return nil
}

// makeFile writes a new file that only its owner may read.
func makeFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// selfSigned makes a certificate for ten years. It is no CA.
func selfSigned(hosts []string, now time.Time) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "coco key broker"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}), err
}
