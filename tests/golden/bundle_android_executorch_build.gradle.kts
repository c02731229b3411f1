// Written by `phi-edge bundle`. These lines go into the app module's build.gradle.kts.
android {
    defaultConfig {
        minSdk = 28
        ndk { abiFilters += "arm64-v8a" }
    }
    // Weights are mapped, not read: a compressed asset cannot be.
    androidResources { noCompress += listOf("pte", "onnx", "data") }
    // Libraries stay uncompressed and aligned in the APK, as devices with pages of 16 KB need.
    packaging { jniLibs { useLegacyPackaging = false } }
}

dependencies {
    implementation("org.pytorch:executorch-android:1.4.1")
}
